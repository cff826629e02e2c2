"""How the time of a run is shared: what a part leaves goes to the ones after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")
Failed = Callable[[str, Exception], None]


class Budget:
    """Weights of parts in the order in which they run, within `seconds` from now."""

    def __init__(
        self,
        seconds: float,
        weights: Mapping[str, float],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._end = now() + seconds
        self._weights = dict(weights)

    def left(self) -> float:
        return max(0.0, self._end - self._now())

    def take(self, name: str) -> float:
        """Seconds for part `name`, which begins now: its share among those that have not begun."""
        total = sum(self._weights.values())
        return self.left() * self._weights.pop(name) / total


def isolated(name: str, run: Callable[[], T], otherwise: T, failed: Failed) -> T:
    """What `run` returns. Where it raises, `failed` is told and the result is `otherwise`."""
    try:
        return run()
    except Exception as error:
        failed(name, error)
        return otherwise
