"""Child processes with a time limit: however one ends, it and all it started are gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from tools.gpu.machine import ROOT

_REASON_CHARACTERS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """`status` is the exit status, negative for a signal, None where time ran out; `output` both
    streams."""

    status: int | None
    output: str
    limit: float

    @property
    def failure(self) -> str:
        """How it failed, with the end of what it said; empty for a success."""
        if self.status == 0:
            return ""
        if self.status is None:
            return f"not finished after {self.limit:.0f} s"
        if self.status < 0:
            how = f"crashed ({signal.Signals(-self.status).name})"
        else:
            how = f"exit status {self.status}"
        said = self.output.strip()[-_REASON_CHARACTERS:].replace(f"{ROOT}/", "")
        return f"{how}: {said}" if said else how


def run_limited(command: Sequence[str], seconds: float) -> Finished:
    """Run `command` in the checkout, which is importable there, for at most `seconds`."""
    limit = max(seconds, 1.0)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to end it with all that it started
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        output.seek(0)
        said = output.read().decode(errors="replace")
    return Finished(status=status, output=said, limit=limit)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # the group has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "exporter"), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)))
