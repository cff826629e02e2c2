"""dynamic-ntk: NTK-aware scaling whose base grows with the length of the text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.scaling._frequencies import as_table, base_of
from ctx_export.scaling._length_table import LengthTable
from ctx_export.scaling.base import FrequencyTable, Method, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicNtkParameters:
    """Dynamic NTK scaling has no parameter but the factor."""


def length_table(request: Request) -> LengthTable:
    """inv_freq_i = b'^(−2i/d) with b' = b·g^(d/(d−2)), g = s·n/Lmax − (s − 1), at least 1.

    So inv_freq_i = th_i·g^(−2i/(d−2)). Lmax is max_position_embeddings (YaRN, arXiv 2309.00071,
    section 3.3, and transformers, `_compute_dynamic_ntk_parameters`).
    """
    shape, factor = request.shape, request.factor
    d = shape.rotary_dim
    if d == 2:
        raise UserError(
            "dynamic-ntk needs a rotary dimension above 2, this model has 2: choose linear"
        )
    frequencies = base_of(shape)
    return LengthTable(
        short_frequencies=frequencies,
        long_frequencies=frequencies,
        ramp=np.zeros(d // 2),
        exponent=-np.arange(0, d, 2, dtype=np.float64) / (d - 2),
        threshold=float(shape.max_position_embeddings),
        slope=factor / shape.max_position_embeddings,
        offset=1.0 - factor,
    )


def table(request: Request) -> FrequencyTable:
    """The table at n = T; with s = T/Lmax its growth is s² − s + 1."""
    by_length = length_table(request)
    growth = by_length.growth(request.target)
    d = request.shape.rotary_dim
    base = request.shape.theta * growth ** (d / (d - 2))
    return as_table(*by_length.at(request.target), growth=growth, base=base)


METHOD = Method(
    name="dynamic-ntk",
    aliases=("dynamic",),
    summary="NTK-aware with a base that grows with the length of the text",
    source="dynamic NTK, arXiv 2309.00071 section 3.3",
    parameters=DynamicNtkParameters,
    table=table,
    length_table=length_table,
    bounded_cache=False,
)
