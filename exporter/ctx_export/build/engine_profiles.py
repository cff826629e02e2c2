"""Optimization profiles: the ranges of sizes an engine is built for.

Profile 0, prefill, takes up to max_chunk tokens in a call; profile 1, decode, takes exactly one.
The maximum context is baked in here: no profile admits more cache slots than `capacity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctx_export.core.manifest import TensorInfo

PREFILL, DECODE = 0, 1
PROFILE_NAMES = ("prefill", "decode")
# Where a full cache of a long maximum usually stands; the size that kernels are chosen for.
_USUAL_SLOTS = 4096

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest sizes the engine accepts: sequences, tokens of a call, cache slots of a sequence."""

    max_batch: int
    max_chunk: int
    capacity: int

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_chunk", "capacity"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRange:
    """Smallest, usual and largest shape of one input in one profile."""

    name: str
    minimum: Shape
    optimum: Shape
    maximum: Shape


def profiles(inputs: Sequence[TensorInfo], limits: Limits) -> tuple[tuple[ShapeRange, ...], ...]:
    """The ranges of every input that has symbolic dimensions: (prefill, decode).

    Raises ValueError for a symbolic dimension other than batch, tokens, slots and rows.
    """
    return tuple(
        tuple(_range(tensor, _sizes(limits, tokens)) for tensor in inputs if _symbolic(tensor))
        for tokens in (limits.max_chunk, 1)
    )


def _sizes(limits: Limits, tokens: int) -> dict[str, Shape]:
    """(minimum, optimum, maximum) of each symbolic dimension where a call has `tokens` at most."""
    return {
        "batch": (1, 1, limits.max_batch),
        "tokens": (1, tokens, tokens),
        "slots": (1, min(limits.capacity, _USUAL_SLOTS), limits.capacity),
        # One row a sequence is what generation asks for; all rows are for scoring a text.
        "rows": (1, 1, tokens),
    }


def _range(tensor: TensorInfo, sizes: dict[str, Shape]) -> ShapeRange:
    shapes = []
    for which in range(3):
        shape = []
        for dimension in tensor.shape:
            if isinstance(dimension, int):
                shape.append(dimension)
            elif dimension in sizes:
                shape.append(sizes[dimension][which])
            else:
                raise ValueError(
                    f"input {tensor.name} has the symbolic dimension {dimension!r}; "
                    f"profiles know {', '.join(sizes)}"
                )
        shapes.append(tuple(shape))
    return ShapeRange(name=tensor.name, minimum=shapes[0], optimum=shapes[1], maximum=shapes[2])


def _symbolic(tensor: TensorInfo) -> bool:
    return any(isinstance(dimension, str) for dimension in tensor.shape)
