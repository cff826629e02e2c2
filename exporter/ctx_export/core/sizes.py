"""Sizes as people write them: `128k`, `1m`, `131072`. k and m are powers of 1024."""

from __future__ import annotations

import re
from fractions import Fraction

from ctx_export.core.errors import UserError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_MOST = 2**63 - 1  # what the 64-bit sizes of tensors hold


def parse_size(text: str | int, *, what: str = "size") -> int:
    """Number of tokens that `text` names; raises UserError for anything but a positive
    size of 63 bits."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", str(text).strip().lower())
    if match:
        value = Fraction(match[1]) * _UNITS[match[2]]
        if 1 <= value <= _MOST and value.denominator == 1:
            return value.numerator
    raise UserError(
        f"{what} {text!r} is not a size: write a number of tokens such as 131072 or 128k"
    )


def format_size(tokens: int) -> str:
    """The shortest exact spelling of a token count."""
    for unit, scale in (("m", 1 << 20), ("k", 1 << 10)):
        if tokens >= scale and tokens % scale == 0:
            return f"{tokens // scale}{unit}"
    return str(tokens)
