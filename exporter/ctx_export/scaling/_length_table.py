"""Frequencies as a function of the rope length n: what the operator RotaryFrequencies computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError

Frequencies = NDArray[np.float64]

_ROWS = ("short_frequencies", "long_frequencies", "ramp", "exponent")
_SCALARS = (
    *("threshold", "slope", "offset", "short_multiplier", "long_multiplier"),
    *("gain", "gain_all"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthTable:
    """One form for every method whose frequencies follow the length; see FORMULAS section 1.

    With growth g = max(1, slope·n + offset), and of each pair the long one where n > threshold:
    inv_freq_i = f_i·(1 − ramp_i + ramp_i/g)·g^exponent_i,
    multiplier = m·(1 + gain·ln g)/(1 + gain_all·ln g).
    Raises UserError for rows of different lengths and for what float32 cannot hold.
    """

    short_frequencies: Frequencies  # [F], radians per token
    long_frequencies: Frequencies  # [F], radians per token
    ramp: Frequencies  # [F], 0: kept, 1: divided by the growth
    exponent: Frequencies  # [F]
    threshold: float  # tokens
    slope: float = 0.0  # growth per token
    offset: float = 0.0
    short_multiplier: float = 1.0  # factor on cos and sin
    long_multiplier: float = 1.0
    gain: float = 0.0
    gain_all: float = 0.0

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in _ROWS}
        count = self.short_frequencies.size
        if not count or any(shape != (count,) for shape in shapes.values()):
            told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise UserError(f"rows of a length table differ in shape: {told}; give all of them F")
        for name in (*_ROWS, *_SCALARS):
            value = getattr(self, name)
            if not (np.abs(value) <= np.finfo(np.float32).max).all():
                raise UserError(
                    f"{name} of the table by length is {value}: it must be finite in float32; "
                    "check rope_theta, the factor and the method's parameters"
                )

    def to_json(self) -> dict[str, Any]:
        """Every row and scalar by name, as float64 numbers."""
        rows = {name: getattr(self, name).tolist() for name in _ROWS}
        return {**rows, **{name: float(getattr(self, name)) for name in _SCALARS}}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> LengthTable:
        """The inverse of `to_json`; raises UserError where something is missing or no number."""
        try:
            values: dict[str, Any] = {name: np.asarray(raw[name], np.float64) for name in _ROWS}
            values |= {name: float(raw[name]) for name in _SCALARS}
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"scaling.length_table of the manifest is not valid: {error}; export the package "
                "again"
            ) from None

    def growth(self, length: int) -> float:
        """g at rope length `length`: how far the frequencies are stretched, at least 1."""
        return max(1.0, self.slope * length + self.offset)

    def at(self, length: int) -> tuple[Frequencies, float]:
        """(inv_freq [F], multiplier) at rope length `length`, float64."""
        is_long = length > self.threshold
        growth = self.growth(length)
        frequencies = self.long_frequencies if is_long else self.short_frequencies
        inv_freq = frequencies * (1 - self.ramp + self.ramp / growth) * growth**self.exponent
        multiplier = self.long_multiplier if is_long else self.short_multiplier
        log = math.log(growth)
        return inv_freq, multiplier * (1 + self.gain * log) / (1 + self.gain_all * log)

    def packed(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(tables [4,2,F], scalars [7,2]): each number as float32 high and low part.

        Their sum keeps 48 bits. Rows are short, long, ramp, exponent; scalars are threshold,
        slope, offset, short_multiplier, long_multiplier, gain, gain_all.
        """
        tables = np.stack([getattr(self, name) for name in _ROWS])
        scalars = np.array([getattr(self, name) for name in _SCALARS], np.float64)
        return _pair(tables, axis=1), _pair(scalars, axis=1)


def _pair(values: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """float32 parts that add up to `values`, stacked along a new axis: high, then low."""
    high = values.astype(np.float32)
    low = (values - high.astype(np.float64)).astype(np.float32)
    return np.stack([high, low], axis=axis)
