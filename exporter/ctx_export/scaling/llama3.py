"""llama3: Llama 3.1's scaling, by wavelength, with a smooth band between kept and divided."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.scaling._frequencies import as_table, base_of
from ctx_export.scaling.base import FrequencyTable, Method, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Parameters:
    """Edges of the smooth band in rotations over the original context; Llama 3.1's are 1 and 4."""

    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UserError(
                f"scaling.low_freq_factor is {self.low_freq_factor:g} and high_freq_factor "
                f"{self.high_freq_factor:g}: both must be above 0 and low below high "
                "(Llama 3.1's are 1 and 4)"
            )


def table(request: Request) -> FrequencyTable:
    """By wavelength lam_i = 2π/th_i, with low and high the two band edges, multiplier 1.

    lam_i < L/high: th_i. lam_i > L/low: th_i/s. Between: (1−g)·th_i/s + g·th_i with
    g = (L/lam_i − low)/(high − low). Source: Llama 3.1, models/llama3/reference_impl/model.py.
    """
    low, high = request.parameters.low_freq_factor, request.parameters.high_freq_factor
    base = base_of(request.shape)
    rotations = request.shape.original_context * base / (2 * math.pi)  # L / lam_i
    kept = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return as_table((1.0 - kept) * base / request.factor + kept * base)


METHOD = Method(
    name="llama3",
    summary="Llama 3.1's scaling by wavelength",
    source="Llama 3.1, arXiv 2407.21783",
    parameters=Llama3Parameters,
    table=table,
)
