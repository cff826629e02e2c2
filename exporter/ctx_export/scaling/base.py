"""What a scaling method is: a name, its typed parameters and a pure function to a frequency table.

Notation as in the papers: d rotary dimension, b base (theta), L original context, T target, s factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryShape:
    """What a model's position encoding was trained with."""

    head_dim: int
    rotary_dim: int  # d: int(head_dim · partial_rotary_factor), even
    theta: float  # b
    original_context: int  # L, tokens
    max_position_embeddings: int  # as the checkpoint's config states it; ≥ L where it was scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyTable:
    """Baked rotation table: float32 radians per token, [F], and the factor on cos and sin."""

    inv_freq: NDArray[np.float32]
    multiplier: float
    details: dict[str, Any] = field(default_factory=dict)  # values worth printing: low, high, b'


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One table to compute: `parameters` is an instance of the method's own parameter class."""

    shape: RotaryShape
    target: int  # T, tokens
    factor: float  # s, already resolved to T / L where nobody gave one
    parameters: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One scaling method; a module in `scaling/` exports exactly one as `METHOD`."""

    name: str
    aliases: tuple[str, ...] = ()
    summary: str  # one line for --help and the support table
    source: str  # paper or model that defines it
    parameters: type  # frozen dataclass; field names are Hugging Face's keys
    uses_factor: bool = True
    table: Callable[[Request], FrequencyTable]
