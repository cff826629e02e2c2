"""How long work tells what it is doing: a protocol for the library, a line for a terminal."""

from __future__ import annotations

import time
from typing import Protocol, TextIO


class Progress(Protocol):
    """What the library reports to. Calls are cheap and may come as often as the work likes."""

    def stage(self, name: str) -> None:
        """A new stage begins (and the one before has ended), such as "tracing" or "building"."""

    def update(self, done: int, total: int) -> None:
        """The running stage has finished `done` of `total` equal parts."""


class SilentProgress:
    """Reports nothing: pipes, tests and callers of the Python API."""

    def stage(self, name: str) -> None:
        pass

    def update(self, done: int, total: int) -> None:
        pass


class TerminalProgress:
    """One line per stage on a terminal, redrawn in place, with its seconds once it has ended."""

    _REDRAW_SECONDS = 0.1
    _STEADY_SECONDS = 3.0  # before which the time left is not guessed

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._name = ""
        self._started = 0.0
        self._drawn = 0.0
        self._first: tuple[float, int] | None = None  # when, and parts done, of the first update

    def close(self, *, failed: bool = False) -> None:
        """End the last line; `failed` says that the work stopped in the middle of its stage."""
        if self._name:
            seconds = time.monotonic() - self._started
            self._draw(("failed after " if failed else "") + f"{seconds:.1f} s")
            self._stream.write("\n")
            self._stream.flush()
        self._name = ""

    def stage(self, name: str) -> None:
        self.close()
        self._name, self._started, self._drawn = name, time.monotonic(), 0.0
        self._first = None
        self._draw("…")

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._name and now - self._drawn >= self._REDRAW_SECONDS:
            self._drawn = now
            self._draw(f"{done}/{total}{self._left(done, total, now)}")

    def _left(self, done: int, total: int, now: float) -> str:
        """How long the rest takes at the pace so far, once that can be told."""
        if self._first is None or done < self._first[1]:
            self._first = (now, done)  # what was done before, by an earlier run, took no time now
        began, at = self._first
        if done == at or now - began < self._STEADY_SECONDS:
            return ""
        return f", {duration((now - began) / (done - at) * (total - done))} left"

    def _draw(self, state: str) -> None:
        # "\x1b[K" clears what a longer state left behind on the line.
        self._stream.write(f"\r  {self._name:<24} {state}\x1b[K")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
