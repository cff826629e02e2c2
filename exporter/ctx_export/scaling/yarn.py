"""yarn: the ntk-by-parts table and a factor on cos and sin that sharpens the softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctx_export.core.errors import UserError
from ctx_export.scaling._frequencies import as_table
from ctx_export.scaling.base import FrequencyTable, Method, Request
from ctx_export.scaling.ntk_by_parts import RampParameters, ramp_range, ramped_frequencies


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnParameters(RampParameters):
    """The ramp and the attention factor: given outright, or from `mscale` and `mscale_all_dim`."""

    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        RampParameters.__post_init__(self)
        if self.attention_factor is not None and self.attention_factor <= 0:
            raise UserError(
                f"scaling.attention_factor is {self.attention_factor:g}: it must be above 0"
            )


MAGNITUDE_GAIN = 0.1  # of mscale, on ln s


def magnitude_scale(factor: float, mscale: float) -> float:
    """mscale(s, m) = 0.1·m·ln s + 1, and 1 for s ≤ 1 (arXiv 2309.00071, equation 22)."""
    return 1.0 if factor <= 1 else MAGNITUDE_GAIN * mscale * math.log(factor) + 1.0


def attention_factor(factor: float, parameters: YarnParameters) -> float:
    """Factor on cos and sin: as given; else the ratio of BOTH mscales; else mscale(s, 1).

    Unlike transformers, an mscale of 0 that is given counts as given.
    """
    if parameters.attention_factor is not None:
        return parameters.attention_factor
    if parameters.mscale is not None and parameters.mscale_all_dim is not None:
        return magnitude_scale(factor, parameters.mscale) / magnitude_scale(
            factor, parameters.mscale_all_dim
        )
    return magnitude_scale(factor, 1.0)


def table(request: Request) -> FrequencyTable:
    """NTK-by-parts frequencies with YaRN's attention factor (arXiv 2309.00071, section 3.4)."""
    bounds = ramp_range(request.shape, request.parameters)
    inv_freq = ramped_frequencies(request.shape, request.factor, bounds)
    multiplier = attention_factor(request.factor, request.parameters)
    return as_table(inv_freq, multiplier, low=bounds[0], high=bounds[1])


METHOD = Method(
    name="yarn",
    summary="NTK-by-parts with an attention factor; the usual choice",
    source="YaRN, arXiv 2309.00071",
    parameters=YarnParameters,
    table=table,
)
