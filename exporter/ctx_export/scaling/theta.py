"""theta: adjusted base frequency (ABF), a rotary base given outright."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.core.errors import UserError
from ctx_export.scaling._frequencies import as_table, rotary_frequencies
from ctx_export.scaling.base import FrequencyTable, Method, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class ThetaParameters:
    """`rope_theta` is the new base b'; Code Llama's is 1e6."""

    rope_theta: float

    def __post_init__(self) -> None:
        if not self.rope_theta > 1:
            raise UserError(
                f"scaling.rope_theta is {self.rope_theta:g}: a rotary base must be above 1, "
                "such as 1000000"
            )


def table(request: Request) -> FrequencyTable:
    """inv_freq_i = b'^(−2i/d), multiplier 1 (Code Llama, arXiv 2308.12950, section 2.4)."""
    base = request.parameters.rope_theta
    return as_table(rotary_frequencies(request.shape.rotary_dim, base), base=base)


METHOD = Method(
    name="theta",
    aliases=("abf",),
    summary="adjusted base frequency: scaling.rope_theta replaces the base",
    source="Code Llama, arXiv 2308.12950",
    parameters=ThetaParameters,
    uses_factor=False,
    table=table,
)
