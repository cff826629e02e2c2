"""ntk: NTK-aware scaling, a larger base chosen once for the factor."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.core.errors import UserError
from ctx_export.scaling._frequencies import as_table, rotary_frequencies
from ctx_export.scaling.base import FrequencyTable, Method, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class NtkParameters:
    """NTK-aware scaling has no parameter but the factor."""


def table(request: Request) -> FrequencyTable:
    """inv_freq_i = b'^(−2i/d) with b' = b·s^(d/(d−2)), multiplier 1.

    The lowest frequency is then exactly th/s and the highest unchanged (YaRN, arXiv 2309.00071,
    definition 1).
    """
    d = request.shape.rotary_dim
    if d == 2:
        raise UserError("ntk needs a rotary dimension above 2, this model has 2: choose linear")
    base = request.shape.theta * request.factor ** (d / (d - 2))
    return as_table(rotary_frequencies(d, base), base=base)


METHOD = Method(
    name="ntk",
    summary="NTK-aware: a larger rotary base, high frequencies kept",
    source="NTK-aware scaling, arXiv 2309.00071 section 3.1",
    parameters=NtkParameters,
    table=table,
)
