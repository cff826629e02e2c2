"""What benchmarks share: a command's time, memory and disk, spreads, and where they ran."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import ArrayLike

_POLL_SECONDS = 0.02
_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one run took. `peak_bytes` is resident memory of the whole process tree."""

    seconds: float
    peak_bytes: int
    disk_bytes: int


def run(command: Sequence[str], log: Path) -> tuple[float, int]:
    """(seconds, peak resident bytes) of a command that must succeed; its output goes to `log`.

    The peak is the larger of the kernel's own mark for the largest process of the tree (wait4) and
    the highest sum over the tree's processes seen in samples. Raises RuntimeError on failure.
    """
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        sampler = _Sampler(process.pid)
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            seconds = time.monotonic() - started
            sampler.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)} exits {process.returncode}:\n{tail}")
    return seconds, max(usage.ru_maxrss * _KIB, sampler.peak_bytes)


def added_bytes(directory: Path, existing: Path) -> int:
    """Bytes on disk under `directory` that are not hard links to files under `existing`."""
    known = {(s.st_dev, s.st_ino) for s in _stats(existing)}
    added = {(s.st_dev, s.st_ino): s.st_blocks * 512 for s in _stats(directory)}
    return sum(size for key, size in added.items() if key not in known)


def spread(values: ArrayLike) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile, to four decimals."""
    low, middle, high = np.quantile(np.asarray(values, np.float64), [0.1, 0.5, 0.9])
    return round(float(middle), 4), round(float(low), 4), round(float(high), 4)


def numbers(text: str, what: str, *, least: int, most: int | None = None) -> list[int]:
    """The numbers of an option such as "256,512"; click.UsageError where one is out of range."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.UsageError(f"{what} is {text!r}: give numbers such as 16,32") from None
    if min(found) < least or (most is not None and max(found) > most):
        limits = f"at least {least}" + (f" and at most {most}" if most is not None else "")
        raise click.UsageError(f"{what} is {text!r}: give numbers of {limits}")
    return found


def machine(threads: int, packages: Sequence[str]) -> dict[str, Any]:
    """Where a benchmark ran: processor, threads, versions of Python and of `packages`."""
    return {
        "processor": _processor(),
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _resident(pid: int) -> int:
    """Resident memory of a process (VmRSS); 0 where there is no such process or no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def own_memory() -> tuple[int, int]:
    """(resident, private) bytes of this process: VmRSS, and anonymous memory, swapped out or not,
    which the system cannot take back to hide a leak. Raises click.ClickException without /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        raise click.ClickException("memory cannot be measured: there is no /proc here") from None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon", "VmSwap")}
    return kib["VmRSS"] * _KIB, (kib["RssAnon"] + kib["VmSwap"]) * _KIB


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _stats(directory: Path) -> Iterable[os.stat_result]:
    return [path.lstat() for path in directory.rglob("*") if path.is_file()]


class _Sampler(threading.Thread):
    """Sums resident memory over a process and its descendants until stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._pid = pid
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident, _tree(self._pid))))

    def stop(self) -> None:
        self._done.set()
        self.join()


def _tree(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                waiting.extend(int(child) for child in task.read_text().split())
            except OSError:
                continue  # the thread has just ended
    return found
