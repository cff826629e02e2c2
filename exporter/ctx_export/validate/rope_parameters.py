"""A package's method in Hugging Face's words: the `rope_parameters` of its reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest

_TYPES = {
    "none": "default",
    "theta": "default",
    "ntk": "default",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
    "ntk-by-parts": "yarn",
    "longrope": "longrope",
    "proportional": "proportional",
    "dynamic-ntk": "dynamic",
    "dynamic-yarn": "yarn",
}
_WITH_ORIGINAL = frozenset({"yarn", "longrope", "llama3"})
_WITH_FACTOR = frozenset({"linear", "llama3", "yarn", "longrope", "proportional", "dynamic"})
# transformers has one attention_factor for both tables of longrope.
_MSCALES = ("short_mscale", "long_mscale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What a package bakes in: its method with Hugging Face's keys, s, L and T.

    Of a method whose frequencies follow the length, `target` is the rope length in question.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    factor: float = 1.0
    original_context: int
    target: int

    @classmethod
    def of(cls, manifest: Manifest) -> Scaling:
        """The scaling that a manifest states."""
        return cls(
            method=manifest.method,
            parameters=manifest.scaling.get("parameters") or {},
            factor=manifest.factor,
            original_context=int(manifest.model["original_context"]),
            target=_reach(manifest),
        )

    @property
    def long_table(self) -> bool:
        """Which of longrope's tables holds: the one of the target's length."""
        return self.target > self.original_context


def _reach(manifest: Manifest) -> int:
    """The length that the manifest's `inv_freq` are of; the first beyond L where none is the
    last."""
    original = int(manifest.model["original_context"])
    if manifest.max_context is not None:
        return manifest.max_context
    return original + (manifest.scaling.get("length_table") is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A checkpoint's own rotation: its base, the share of the head that rotates, its dimension."""

    theta: float
    partial_rotary_factor: float
    head_dim: int


def rope_parameters(scaling: Scaling, trained: Trained) -> dict[str, Any]:
    """transformers' `rope_parameters` for `scaling` on a model; raises UserError for a method that
    transformers does not have."""
    kind = _TYPES.get(scaling.method)
    if kind is None:
        raise UserError(
            f"method {scaling.method} has no PyTorch reference in this version: validate one of "
            f"{', '.join(_TYPES)}"
        )
    given = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in scaling.parameters.items()
        if value is not None
    }
    result: dict[str, Any] = {"rope_type": kind, "rope_theta": _theta(scaling, trained)}
    if trained.partial_rotary_factor != 1.0:
        result["partial_rotary_factor"] = trained.partial_rotary_factor
    if kind in _WITH_FACTOR:
        result["factor"] = float(scaling.factor)
    if scaling.method == "dynamic-yarn":
        result["factor"] = max(1.0, scaling.target / scaling.original_context)
    if kind in _WITH_ORIGINAL:
        result["original_max_position_embeddings"] = scaling.original_context
    if scaling.method == "ntk-by-parts":
        result["attention_factor"] = 1.0
    if scaling.method == "longrope":
        mscales = {name: given.pop(name, None) for name in _MSCALES}
        chosen = mscales["long_mscale" if scaling.long_table else "short_mscale"]
        if chosen is not None:
            given.setdefault("attention_factor", chosen)
    return {**result, **given}


def _theta(scaling: Scaling, trained: Trained) -> float:
    """The base of the default table; ntk's is b·s^(d/(d−2)) (FORMULAS section 1)."""
    if scaling.method == "ntk":
        rotary = int(trained.head_dim * trained.partial_rotary_factor)
        return float(trained.theta * scaling.factor ** (rotary / (rotary - 2)))
    return float(trained.theta)
