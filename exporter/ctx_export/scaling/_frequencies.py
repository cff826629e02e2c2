"""The float64 pieces that several methods share; tables leave here as float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError
from ctx_export.scaling.base import FrequencyTable, RotaryShape

Frequencies = NDArray[np.float64]


def rotary_frequencies(rotary_dim: int, theta: float) -> Frequencies:
    """th_i = b^(−2i/d), i = 0 … d/2−1 (RoFormer, arXiv 2104.09864), radians per token, [d/2]."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    return np.asarray(float(theta) ** -exponents, dtype=np.float64)


def base_of(shape: RotaryShape) -> Frequencies:
    """The frequencies a model was trained with, [d/2]."""
    return rotary_frequencies(shape.rotary_dim, shape.theta)


def as_table(inv_freq: Frequencies, multiplier: float = 1.0, **details: Any) -> FrequencyTable:
    """Round a float64 table to the float32 that is stored and used.

    Raises UserError where the settings overflow or give a frequency that is no number.
    """
    stored = inv_freq.astype(np.float32)
    if not np.isfinite(stored).all() or not np.isfinite(multiplier):
        raise UserError(
            f"these scaling parameters give frequencies that are not finite (multiplier "
            f"{multiplier}): check rope_theta, the factor and the method's parameters"
        )
    return FrequencyTable(inv_freq=stored, multiplier=float(multiplier), details=details)
