"""The bandwidth of a large copy on the device, which memory-bound kernels are measured against."""

from __future__ import annotations

from typing import Any

from tools.bench.measure import spread
from tools.gpu.compare import Bench
from tools.gpu.rows import MEASURED, Row

CASE, SIDE = "copy", "torch copy_"


def copy_rate(bench: Bench, part: str, nbytes: int) -> float:
    """Bytes read and written a second by a copy of `nbytes`, as a row of `part`."""
    import torch

    source = torch.ones(nbytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)

    def run() -> Any:
        return target.copy_(source)

    times = bench.timer.measure(run, cold=True)
    median, low, high = spread(times)
    rate = 2 * nbytes / (max(median, 1e-4) * 1e-3)
    bench.emit(
        Row(
            part=part,
            case=CASE,
            side=SIDE,
            state=MEASURED,
            note=f"{nbytes >> 20} MiB, read and written",
            median_ms=median,
            p10_ms=low,
            p90_ms=high,
            runs=len(times),
            rate=rate / 1e9,
            unit="GB/s",
            share=1.0,
        )
    )
    return rate


def copy_bytes(device: str) -> int:
    """As large as is reasonable: 2 GiB on a GPU."""
    return 2 << 30 if device == "cuda" else 1 << 20
