"""How much memory is free, so that a comparison that cannot fit is refused before it starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

# Share of the free memory that a reference may take; a bigger one is run layer by layer.
MEMORY_SHARE = 0.5


def available_bytes() -> int | None:
    """Memory that can be taken without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def parameters(checkpoint: Any) -> int:
    """Weights of a `Checkpoint`."""
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


def runs_by_layer(checkpoint: Any) -> bool:
    """Whether the float32 weights of a reference take more of the free memory than they may."""
    free = available_bytes()
    return free is not None and 4 * parameters(checkpoint) > MEMORY_SHARE * free


def gibibytes(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.1f} GiB"
