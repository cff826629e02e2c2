"""ntk-by-parts: low frequencies interpolated, high ones kept, a ramp between; YaRN's table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.scaling._frequencies import Frequencies, as_table, base_of
from ctx_export.scaling.base import FrequencyTable, Method, Request, RotaryShape


@dataclass(frozen=True, slots=True, kw_only=True)
class RampParameters:
    """Where the ramp runs: rotations over the original context, `beta_fast` kept and above,
    `beta_slow` interpolated and below; `truncate` rounds its ends to whole dimensions."""

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.beta_slow <= 0 or self.beta_fast < self.beta_slow:
            raise UserError(
                f"scaling.beta_fast is {self.beta_fast:g} and beta_slow {self.beta_slow:g}: both "
                "must be above 0 and beta_fast at least beta_slow (the defaults are 32 and 1)"
            )


def ramp_range(shape: RotaryShape, parameters: RampParameters) -> tuple[float, float]:
    """(low, high), the dimension indices between which the ramp rises from 0 to 1.

    The code form of YaRN (arXiv 2309.00071, section 3.2), linear in the dimension index:
    dim(rot) = d·ln(L/(2π·rot)) / (2·ln b), low from beta_fast and high from beta_slow.
    """

    def dimension(rotations: float) -> float:
        turns = shape.original_context / (2 * math.pi * rotations)
        return shape.rotary_dim * math.log(turns) / (2 * math.log(shape.theta))

    low, high = dimension(parameters.beta_fast), dimension(parameters.beta_slow)
    if parameters.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, shape.rotary_dim - 1)
    if high < low:
        raise UserError(
            f"the interpolation ramp would run from dimension {low:g} down to {high:g}: with "
            f"original context {shape.original_context} and base {shape.theta:g} no frequency "
            "falls between beta_slow and beta_fast; check the original context and the betas"
        )
    return low, high


def ramp_of(shape: RotaryShape, bounds: tuple[float, float]) -> Frequencies:
    """ramp_i = clip((i − low)/(high − low), 0, 1), [d/2]."""
    low, high = bounds
    if low == high:
        high += 0.001
    index = np.arange(shape.rotary_dim // 2, dtype=np.float64)
    return np.asarray(np.clip((index - low) / (high - low), 0.0, 1.0))


def ramped_frequencies(
    shape: RotaryShape, factor: float, bounds: tuple[float, float]
) -> Frequencies:
    """(th_i/s)·ramp_i + th_i·(1 − ramp_i), [d/2]."""
    ramp = ramp_of(shape, bounds)
    base = base_of(shape)
    return base / factor * ramp + base * (1.0 - ramp)


def table(request: Request) -> FrequencyTable:
    """NTK-by-parts frequencies, multiplier 1 (arXiv 2309.00071, section 3.2)."""
    bounds = ramp_range(request.shape, request.parameters)
    inv_freq = ramped_frequencies(request.shape, request.factor, bounds)
    return as_table(inv_freq, low=bounds[0], high=bounds[1])


METHOD = Method(
    name="ntk-by-parts",
    summary="low frequencies interpolated, high frequencies kept, a ramp between",
    source="NTK-by-parts, arXiv 2309.00071 section 3.2",
    parameters=RampParameters,
    table=table,
)
