"""none: rotary position embedding as the model was trained with it."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.scaling._frequencies import as_table, base_of
from ctx_export.scaling.base import FrequencyTable, Method, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class NoneParameters:
    """Plain rotation has no parameters."""


def table(request: Request) -> FrequencyTable:
    """inv_freq_i = b^(−2i/d), multiplier 1 (RoFormer, arXiv 2104.09864, section 3.2.2)."""
    return as_table(base_of(request.shape))


METHOD = Method(
    name="none",
    summary="plain rotation, no scaling",
    source="RoFormer, arXiv 2104.09864",
    parameters=NoneParameters,
    uses_factor=False,
    table=table,
)
