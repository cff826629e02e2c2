"""A config.json's position settings as a runtime meets them: the words, and what they mean.

`core.rope_settings` normalises spellings away; runtimes fail at spellings, so both are kept here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ctx_export.core.rope_settings import (
    DEFAULT_THETA,
    FAMILY_THETA,
    SPELLINGS,
    TYPES,
    WHOLE,
    RopeSettings,
    main_settings,
    read_layer_rope_settings,
)
from ctx_export.scaling.base import RotaryShape

_TODAY = {"su": "longrope"}  # older words of a rope type


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSettings:
    """One config.json. Where kinds of layers differ, those of the layers that see farthest."""

    family: str  # model_type
    kind: str  # the rope type in today's word
    word: str  # the rope type as it is written
    spellings: frozenset[str] = frozenset()  # rope_scaling, rope_parameters, both or none
    type_keys: frozenset[str] = frozenset()  # type, rope_type, both or none
    per_kind: bool = False  # settings per kind of layer
    other_kinds_scaled: bool = False
    entries: Mapping[str, Any] = field(default_factory=dict)  # of the spelling, nulls left out
    top_level: frozenset[str] = frozenset()  # keys that config.json states outside the entries
    theta: float
    head_dim: int
    rotary_dim: int
    original_context: int
    max_position_embeddings: int
    multiplier: float  # on cos and sin, as the settings mean it
    window: int = 0  # the smallest that some layer has, 0: none

    @property
    def factor(self) -> float:
        """The stated factor; without one max_position_embeddings / L."""
        return float(self.entries.get("factor") or self.ratio)

    @property
    def ratio(self) -> float:
        """max_position_embeddings / L."""
        return self.max_position_embeddings / self.original_context

    @property
    def partial(self) -> bool:
        """Whether part of every head is left unrotated."""
        return self.rotary_dim < self.head_dim

    @property
    def family_theta(self) -> float:
        """The base that the family has where config.json states none."""
        return FAMILY_THETA.get(self.family, DEFAULT_THETA)

    def yarn_multiplier(self, mscale: float = 1.0) -> float:
        """mscale(s, m) of FORMULAS: YaRN's attention factor where nothing else is stated."""
        return 0.1 * mscale * math.log(self.factor) + 1 if self.factor > 1 else 1.0

    def longrope_multiplier(self) -> float:
        """longrope's multiplier from max_position_embeddings / L alone."""
        if self.ratio <= 1 or self.original_context <= 1:
            return 1.0
        return math.sqrt(1 + math.log(self.ratio) / math.log(self.original_context))

    def yarn_ramp(self, dims: int | None = None) -> tuple[float, float]:
        """YaRN's (low, high), not rounded, over `dims` (the rotated ones)."""

        def dim(rotations: float) -> float:
            over = self.original_context / (2 * math.pi * rotations)
            return (dims or self.rotary_dim) * math.log(over) / (2 * math.log(self.theta))

        fast = float(self.entries.get("beta_fast") or 32)
        slow = float(self.entries.get("beta_slow") or 1)
        return dim(fast), dim(slow)


def read_scaling_settings(config: Mapping[str, Any]) -> ScalingSettings:
    """The position settings of a config.json (as `frontends.checkpoint.read_config` gives it);
    raises UserError where they are unknown or contradict each other."""
    from ctx_export.frontends.checkpoint import model_spec

    by_kind = read_layer_rope_settings(config)
    rope = main_settings(by_kind)
    spec = model_spec(config, "fp32")
    spelled = {name: config[name] for name in SPELLINGS if config.get(name)}
    nested = any(isinstance(v, Mapping) for e in spelled.values() for v in e.values())
    entries = _entries(next(iter(spelled.values()), {}))
    word = str(entries.get("rope_type", entries.get("type", "default")))
    return ScalingSettings(
        family=spec.family,
        kind=_TODAY.get(word, word),
        word=word,
        spellings=frozenset(spelled),
        type_keys=frozenset(key for key in ("type", "rope_type") if key in entries),
        per_kind=nested,
        other_kinds_scaled=any(r.method != "none" for r in by_kind.values() if r is not rope),
        entries=entries,
        top_level=frozenset(k for k, value in config.items() if value is not None),
        theta=rope.theta,
        head_dim=spec.head_dim,
        rotary_dim=int(spec.head_dim * rope.partial_rotary_factor),
        original_context=spec.original_context,
        max_position_embeddings=spec.max_position_embeddings,
        multiplier=_multiplier(spec.rotary_shape(), rope),
        window=min((window for window in spec.windows if window), default=0),
    )


def _entries(spelled: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the layers that see farthest, nulls left out."""
    inner = {key: value for key, value in spelled.items() if isinstance(value, Mapping)}
    chosen = (inner.get(WHOLE) or next(iter(inner.values()))) if inner else spelled
    return {key: value for key, value in chosen.items() if value is not None}


def _multiplier(shape: RotaryShape, rope: RopeSettings) -> float:
    from ctx_export.scaling import resolve

    reach = max(shape.max_position_embeddings, shape.original_context)
    return resolve(rope.method, shape, reach, parameters=rope.parameters).table.multiplier


def kinds() -> tuple[str, ...]:
    """Every rope type that a config.json can have, in today's words."""
    return tuple(word for word in TYPES if word not in _TODAY)
