"""proportional: a share of all frequencies rotates, the rest is zero (Gemma 4's global layers)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.scaling._frequencies import as_table, rotary_frequencies
from ctx_export.scaling.base import FrequencyTable, Method, Request, RotaryShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ProportionalParameters:
    """`partial_rotary_factor` is the share p of head_dim that rotates; None: as the model was
    trained."""

    partial_rotary_factor: float | None = None

    def __post_init__(self) -> None:
        share = self.partial_rotary_factor
        if share is not None and not 0 < share <= 1:
            raise UserError(
                f"scaling.partial_rotary_factor is {share:g}: it must be above 0 and at most 1"
            )


def rotated_pairs(shape: RotaryShape, parameters: ProportionalParameters) -> int:
    """k = int(p·head_dim // 2), the number of pairs whose frequency is not zero."""
    share = parameters.partial_rotary_factor
    return shape.rotary_dim // 2 if share is None else int(share * shape.head_dim // 2)


def table(request: Request) -> FrequencyTable:
    """b^(−2j/head_dim)/s for j < k, zeros up to head_dim/2, multiplier 1.

    Not partial rotation: the table always covers the whole head and the exponents divide by
    head_dim. Source: transformers, `_compute_proportional_rope_parameters`.
    """
    shape = request.shape
    if shape.head_dim % 2:
        raise UserError(
            f"proportional rotates the whole head and its dimension is {shape.head_dim}: "
            "it must be even"
        )
    pairs = rotated_pairs(shape, request.parameters)
    inv_freq = np.zeros(shape.head_dim // 2, dtype=np.float64)
    inv_freq[:pairs] = rotary_frequencies(shape.head_dim, shape.theta)[:pairs] / request.factor
    return as_table(inv_freq, rotated_pairs=pairs)


METHOD = Method(
    name="proportional",
    summary="a share of the frequencies rotates over the whole head, divided by the factor",
    source="transformers 5, rope type proportional",
    parameters=ProportionalParameters,
    table=table,
)
