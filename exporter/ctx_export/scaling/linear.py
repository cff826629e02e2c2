"""linear: Position Interpolation, every frequency divided by the factor."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.scaling._frequencies import as_table, base_of
from ctx_export.scaling.base import FrequencyTable, Method, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearParameters:
    """Position Interpolation has no parameter but the factor."""


def table(request: Request) -> FrequencyTable:
    """inv_freq_i = th_i / s, multiplier 1 (arXiv 2306.15595, equation 4)."""
    return as_table(base_of(request.shape) / request.factor)


METHOD = Method(
    name="linear",
    aliases=("pi",),
    summary="Position Interpolation: all positions squeezed by the factor",
    source="Position Interpolation, arXiv 2306.15595",
    parameters=LinearParameters,
    table=table,
)
