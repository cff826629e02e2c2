"""A checkpoint's own position settings, from either spelling of Hugging Face's config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSettings:
    """Normalised `rope_scaling` / `rope_parameters`: our method name and Hugging Face's keys."""

    method: str  # one of the names in `scaling/`; "none" for default
    theta: float
    partial_rotary_factor: float = 1.0
    original_context: int | None = None  # original_max_position_embeddings, where given
    parameters: Mapping[str, Any] = field(default_factory=dict)
