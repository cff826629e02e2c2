"""Run the engine worker: its stdout carries JSON lines, everything else it prints is its log."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ctx_export.core.progress import Progress


class TimedOut(Exception):
    """The worker was stopped at its time limit."""


class Crashed(Exception):
    """The worker ended without an answer; the text says how, as in "was killed by signal 9"."""


def run_worker(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    time_limit_s: float,
    progress: Progress,
) -> dict[str, Any]:
    """The worker's answer, the message {"result": …}; raises TimedOut or Crashed.

    The worker never outlives this call.
    """
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        return _listen(process, time.monotonic() + time_limit_s, progress)
    finally:
        process.kill()
        process.wait()


def _listen(process: subprocess.Popen[str], deadline: float, progress: Progress) -> dict[str, Any]:
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    result: dict[str, Any] | None = None
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            if line is None:
                status = process.wait(timeout=max(0.0, deadline - time.monotonic()))
                break
        except (queue.Empty, subprocess.TimeoutExpired):
            raise TimedOut from None
        message = json.loads(line)
        if "result" in message:
            result = message["result"]
        elif "stage" in message:
            progress.stage(message["stage"])
        else:
            progress.update(message["done"], message["total"])
    reader.join()
    if result is None or status != 0:
        raise Crashed(_how(status))
    return result


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _how(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed, probably for want of memory,"
    if status < 0:
        return f"crashed ({signal.Signals(-status).name})"
    return f"ended without an engine (exit status {status})"
