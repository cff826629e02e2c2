"""longrope: one searched divisor per frequency, from the list for short or for long contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.scaling._frequencies import Frequencies, as_table, base_of
from ctx_export.scaling._length_table import LengthTable
from ctx_export.scaling.base import FrequencyTable, Method, Request, RotaryShape


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRopeParameters:
    """Divisors for lengths up to the original context and beyond it, one per frequency, and the
    multiplier: `attention_factor`, else the mscale of the list in use, else from the factor."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float | None = None
    short_mscale: float | None = None
    long_mscale: float | None = None

    def __post_init__(self) -> None:
        for name in ("attention_factor", "short_mscale", "long_mscale"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"scaling.{name} is {value:g}: it must be above 0")


def published_factor(shape: RotaryShape, target: int) -> float:
    """s of the multiplier: how far the checkpoint was extended, whatever the target is."""
    return max(1.0, shape.max_position_embeddings / shape.original_context)


def default_multiplier(factor: float, original_context: int) -> float:
    """sqrt(1 + ln s / ln L), and 1 for s ≤ 1 (arXiv 2402.13753, section 3.3)."""
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_context))


def table(request: Request) -> FrequencyTable:
    """inv_freq_i = th_i / ext_i, ext = long_factor where T > L, else short_factor."""
    is_long = request.target > request.shape.original_context
    name = "long_factor" if is_long else "short_factor"
    return as_table(*_side(request, is_long=is_long), divisors=name)


def length_table(request: Request) -> LengthTable | None:
    """Both lists, the long one for n > L; None where the target does not pass L."""
    shape = request.shape
    if request.target <= shape.original_context:
        return None
    short_frequencies, short_multiplier = _side(request, is_long=False)
    long_frequencies, long_multiplier = _side(request, is_long=True)
    return LengthTable(
        short_frequencies=short_frequencies,
        long_frequencies=long_frequencies,
        ramp=np.zeros(shape.rotary_dim // 2),
        exponent=np.zeros(shape.rotary_dim // 2),
        threshold=float(shape.original_context),
        short_multiplier=short_multiplier,
        long_multiplier=long_multiplier,
    )


def _side(request: Request, *, is_long: bool) -> tuple[Frequencies, float]:
    """(inv_freq [d/2], multiplier) on one side of the switch."""
    shape, parameters = request.shape, request.parameters
    for key in ("short_factor", "long_factor"):
        count = len(getattr(parameters, key))
        if count != shape.rotary_dim // 2:
            raise UserError(
                f"scaling.{key} has {count} numbers: this model rotates {shape.rotary_dim} "
                f"dimensions and needs {shape.rotary_dim // 2}, one per frequency"
            )
    multiplier = parameters.attention_factor
    if multiplier is None:
        multiplier = parameters.long_mscale if is_long else parameters.short_mscale
    if multiplier is None:
        multiplier = default_multiplier(request.factor, shape.original_context)
    divisors = parameters.long_factor if is_long else parameters.short_factor
    return base_of(shape) / np.asarray(divisors, dtype=np.float64), multiplier


METHOD = Method(
    name="longrope",
    aliases=("su",),
    summary="a searched divisor per frequency, one list up to the original context, one beyond",
    source="LongRoPE, arXiv 2402.13753",
    parameters=LongRopeParameters,
    default_factor=published_factor,
    table=table,
    length_table=length_table,
)
