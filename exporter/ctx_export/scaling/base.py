"""What a scaling method is: a name, its typed parameters and a pure function to a frequency table.

Notation as in the papers: d rotary dimension, b base (theta), L original context, T target,
s factor.
Nothing here imports numpy at run time, so that commands can answer `--help` without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ctx_export.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ctx_export.scaling._length_table import LengthTable


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryShape:
    """What a model's position encoding was trained with."""

    head_dim: int
    rotary_dim: int  # d: int(head_dim · partial_rotary_factor), even
    theta: float  # b
    original_context: int  # L, tokens
    max_position_embeddings: int  # as the checkpoint's config states it; ≥ L where it was scaled

    def __post_init__(self) -> None:
        if not 2 <= self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise UserError(
                f"the rotary dimension is {self.rotary_dim} at head dimension {self.head_dim}: it "
                "must be even, at least 2 and at most the head dimension; check head_dim and "
                "partial_rotary_factor in config.json"
            )
        if not self.theta > 1:
            raise UserError(f"rope_theta is {self.theta}: it must be above 1")
        for name in ("original_context", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1 token")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyTable:
    """Baked rotation table: float32 radians per token, [F], and the factor on cos and sin."""

    inv_freq: NDArray[np.float32]
    multiplier: float
    details: dict[str, Any] = field(default_factory=dict)  # values worth printing: low, high, b'


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One table to compute: `parameters` is an instance of the method's own parameter class."""

    shape: RotaryShape
    target: int  # T, tokens
    factor: float  # s, already resolved to T / L where nobody gave one
    parameters: Any


def span_factor(shape: RotaryShape, target: int) -> float:
    """s = T / L, the factor of a method where nobody gave one; raises UserError for T < L."""
    if target < shape.original_context:
        raise UserError(
            f"target {target} is below the original context of {shape.original_context} tokens: "
            "choose a target at or above it, or give --factor"
        )
    return target / shape.original_context


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One scaling method; a module in `scaling/` exports exactly one as `METHOD`."""

    name: str  # the module's name with hyphens
    aliases: tuple[str, ...] = ()
    summary: str  # one line for --help and the support table
    source: str  # paper or model that defines it
    parameters: type  # frozen dataclass; field names are Hugging Face's keys
    uses_factor: bool = True  # False: the factor is 1 and giving one is an error
    default_factor: Callable[[RotaryShape, int], float] = span_factor
    table: Callable[[Request], FrequencyTable]
    # Of methods whose frequencies follow the length; None where one table serves up to the target.
    length_table: Callable[[Request], LengthTable | None] | None = None
    bounded_cache: bool = True  # False: its frequencies have no meaning where length has no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A method with everything decided: its factor, its parameters object and its table.

    With a `length_table` the frequencies follow the rope length, and `table` is the target's.
    """

    method: Method
    factor: float  # s; 1 for methods without one
    parameters: Any  # an instance of method.parameters
    table: FrequencyTable
    length_table: LengthTable | None = None
