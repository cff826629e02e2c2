"""Time, peak memory and disk of a command, measured from outside it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0  # the process has just ended
    return pages * os.sysconf("SC_PAGE_SIZE")
