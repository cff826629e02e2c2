"""Timers: CUDA events on a GPU, the wall clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

Run = Callable[[], Any]
_LEAD_CYCLES = 400_000  # the GPU waits this long, so that launching is over before the run begins
_FEWEST, _MOST = 5, 200


class Timer(Protocol):
    """Milliseconds of many runs."""

    def measure(self, run: Run, *, cold: bool) -> list[float]:
        """`cold`: whatever the last run left in the L2 cache is flushed before each."""


class WallTimer:
    """For functions that have finished when they return."""

    def __init__(self, runs: int) -> None:
        self._runs = runs

    def measure(self, run: Run, *, cold: bool) -> list[float]:
        times = []
        for _ in range(self._runs):
            started = time.perf_counter()
            run()
            times.append((time.perf_counter() - started) * 1e3)
        return times


class CudaTimer:
    """CUDA events on torch's current stream: about `seconds` of runs, 5 to 200 of them."""

    def __init__(self, seconds: float) -> None:
        import torch

        self._torch: Any = torch
        self._seconds = seconds
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * _MOST)]
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self._flushed = torch.empty(4 * l2_bytes, dtype=torch.uint8, device="cuda")

    def measure(self, run: Run, *, cold: bool) -> list[float]:
        warm = self._timed(run, 3, cold=cold)
        count = int(self._seconds * 1e3 / max(statistics.median(warm), 1e-3))
        count = min(max(count, _FEWEST), _MOST)
        return self._timed(run, count, cold=cold)

    def _timed(self, run: Run, count: int, *, cold: bool) -> list[float]:
        pairs = [(self._events[2 * i], self._events[2 * i + 1]) for i in range(count)]
        for start, end in pairs:
            if cold:
                self._flushed.zero_()
            self._torch.cuda._sleep(_LEAD_CYCLES)
            start.record()
            run()
            end.record()
        self._torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]
