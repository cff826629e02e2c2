"""How much memory is free, so that a comparison that cannot fit is refused before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceMemory:
    """Whether a reference is run layer by layer, and the bytes left for caches."""

    by_layer: bool
    room: float


def reference_memory(checkpoint: Any) -> ReferenceMemory:
    """What a reference's float32 weights leave of the memory that is free now."""
    free = available_bytes()
    if free is None:
        return ReferenceMemory(by_layer=False, room=math.inf)
    weights = 4 * parameters(checkpoint)
    most = MEMORY_SHARE * free
    return ReferenceMemory(by_layer=weights > most, room=free - min(weights, most))


def gibibytes(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.1f} GiB"
