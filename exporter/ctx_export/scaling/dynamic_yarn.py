"""dynamic-yarn: YaRN whose factor is the length of the text over the original context."""

from __future__ import annotations

import numpy as np

from ctx_export.scaling._frequencies import as_table, base_of
from ctx_export.scaling._length_table import LengthTable
from ctx_export.scaling.base import FrequencyTable, Method, Request
from ctx_export.scaling.ntk_by_parts import ramp_of, ramp_range
from ctx_export.scaling.yarn import MAGNITUDE_GAIN, YarnParameters


def length_table(request: Request) -> LengthTable:
    """yarn's table and attention factor with s = max(1, n/L) (arXiv 2309.00071, section 3.3).

    An attention_factor that is given holds at every length.
    """
    shape, parameters = request.shape, request.parameters
    multiplier, gain, gain_all = 1.0, MAGNITUDE_GAIN, 0.0
    if parameters.attention_factor is not None:
        multiplier, gain = parameters.attention_factor, 0.0
    elif parameters.mscale is not None and parameters.mscale_all_dim is not None:
        gain = MAGNITUDE_GAIN * parameters.mscale
        gain_all = MAGNITUDE_GAIN * parameters.mscale_all_dim
    frequencies = base_of(shape)
    return LengthTable(
        short_frequencies=frequencies,
        long_frequencies=frequencies,
        ramp=ramp_of(shape, ramp_range(shape, parameters)),
        exponent=np.zeros(shape.rotary_dim // 2),
        threshold=float(shape.original_context),
        slope=1.0 / shape.original_context,
        short_multiplier=multiplier,
        long_multiplier=multiplier,
        gain=gain,
        gain_all=gain_all,
    )


def table(request: Request) -> FrequencyTable:
    """The table at n = T."""
    by_length = length_table(request)
    low, high = ramp_range(request.shape, request.parameters)
    growth = by_length.growth(request.target)
    return as_table(*by_length.at(request.target), growth=growth, low=low, high=high)


METHOD = Method(
    name="dynamic-yarn",
    summary="YaRN whose factor grows with the length of the text",
    source="YaRN with dynamic scaling, arXiv 2309.00071 section 3.3",
    parameters=YarnParameters,
    uses_factor=False,
    table=table,
    length_table=length_table,
    bounded_cache=False,
)
