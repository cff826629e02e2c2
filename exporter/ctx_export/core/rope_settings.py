"""A checkpoint's own position settings, from either spelling of Hugging Face's config.

`rope_scaling` is the spelling of transformers 4, `rope_parameters` (with `rope_theta` inside) that
of 5; within either, `type` is the older word for `rope_type`. What is not understood is an error:
exporters that drop a setting they do not know produce models that fail past the trained length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ctx_export.core.errors import UserError

SPELLINGS = ("rope_scaling", "rope_parameters")
# Hugging Face's rope types and the method each one is; a checkpoint can have no other.
TYPES = {
    "default": "none",
    "linear": "linear",
    "dynamic": "dynamic-ntk",
    "yarn": "yarn",
    "longrope": "longrope",
    "su": "longrope",
    "llama3": "llama3",
    "proportional": "proportional",
}
# Keys a published setting of that method must have; transformers has no defaults for them.
REQUIRED = {
    "linear": ("factor",),
    "dynamic-ntk": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
# `finetuned` (the first YaRN checkpoints) tells how a model was trained, not how it computes.
_WITHOUT_EFFECT = frozenset({"finetuned"})
_NOT_PARAMETERS = frozenset(
    {
        "type",
        "rope_type",
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        *_WITHOUT_EFFECT,
    }
)
# Kinds of layers that a checkpoint's `layer_types` names: those that see every token and those
# with a window.
WHOLE, SLIDING = "full_attention", "sliding_attention"
# Bases of a second kind of layer, beside `rope_theta` for the first.
_LOCAL_THETA = "rope_local_base_freq"
_PER_LAYER_KEYS = (_LOCAL_THETA, "local_rope_theta", "global_rope_theta")

# What transformers 5 assumes where a config.json of that family does not say.
DEFAULT_THETA = 10000.0
FAMILY_THETA = {
    "bitnet": 5e5,
    "cohere": 5e5,
    "ernie4_5": 5e5,
    "ernie4_5_moe": 5e5,
    "flex_olmo": 5e5,
    "helium": 1e5,
    "minimax_m2": 5e6,
    "mixtral": 1e6,
    "phimoe": 1e6,
    "smollm3": 2e6,
    "solar_open": 1e6,
}
# Families whose scaling is of layers that see every token, where config.json has one for all.
_WINDOWED_PLAIN = frozenset({"olmo3"})
FAMILY_PARTIAL_ROTARY_FACTOR = {
    "glm": 0.5,
    "glm4": 0.5,
    "gpt_neox": 0.25,
    "nemotron": 0.5,
    "persimmon": 0.5,
    "phi": 0.5,
    "stablelm": 0.25,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSettings:
    """Normalised `rope_scaling` / `rope_parameters`: our method name and Hugging Face's keys.

    `parameters` are the method's own, `factor` among them where the config gives one; proportional
    keeps its `partial_rotary_factor` there, because it rotates the whole head.
    """

    method: str  # a value of TYPES: "none" for default; not every one is a module in `scaling/`
    theta: float
    partial_rotary_factor: float = 1.0
    original_context: int | None = None  # original_max_position_embeddings, where given
    parameters: Mapping[str, Any] = field(default_factory=dict)
    rotates: bool = True  # False: of layers without positions, and nothing else here has effect
    kept: bool = False  # of a kind of layers that a scaling method leaves as it was trained


def read_rope_settings(config: Mapping[str, Any]) -> RopeSettings:
    """The position settings of a raw config.json, of the layers that see every token where layers
    differ; raises UserError for what it cannot honour."""
    return main_settings(read_layer_rope_settings(config))


def main_settings(by_kind: Mapping[str, RopeSettings]) -> RopeSettings:
    """The settings that a scaling method replaces: those of the layers that see farthest."""
    return by_kind.get(WHOLE) or next(iter(by_kind.values()))


def read_layer_rope_settings(config: Mapping[str, Any]) -> dict[str, RopeSettings]:
    """The position settings of a raw config.json by kind of layer, under "" where there is one
    setting for all of them; raises UserError for what it cannot honour."""
    by_kind = _by_kind(config)
    if not by_kind:
        return {"": _read_one(config)}
    shared = {k: v for k, v in config.items() if k not in (*SPELLINGS, *_PER_LAYER_KEYS)}
    shared.pop("rope_theta", None)
    settings = {}
    for kind, entries in by_kind.items():
        try:
            own = _read_one({**shared, SPELLINGS[1]: entries})
            settings[kind] = replace(own, kept=kind != WHOLE and WHOLE in by_kind)
        except UserError as error:
            raise UserError(f"layers of type {kind}: {error}") from None
    return settings


def _by_kind(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Entries per kind of layer: nested ones, or the older `rope_local_base_freq` for layers with
    a window; empty where all layers share one setting."""
    nested = [
        (name, config[name])
        for name in SPELLINGS
        if isinstance(config.get(name), Mapping)
        and any(isinstance(value, Mapping) for value in config[name].values())
    ]
    if len(nested) > 1:
        raise UserError(
            f"{SPELLINGS[0]} and {SPELLINGS[1]} both have settings per kind of layer: keep one"
        )
    if nested:
        name, entries = nested[0]
        given = {key: value for key, value in entries.items() if value is not None}
        flat = [key for key, value in given.items() if not isinstance(value, Mapping)]
        if flat:
            raise UserError(
                f"{name} has settings per kind of layer and beside them {', '.join(flat)}: move "
                "those into each kind; correct config.json"
            )
        return given
    local = config.get(_LOCAL_THETA)
    if local is None and str(config.get("model_type")) in _WINDOWED_PLAIN:
        local = _stated_theta(config)
    if local is None:
        return {}
    whole = dict(config.get(SPELLINGS[1]) or config.get(SPELLINGS[0]) or {"rope_type": "default"})
    if config.get("rope_theta") is not None:
        whole.setdefault("rope_theta", config["rope_theta"])
    return {WHOLE: whole, SLIDING: {"rope_type": "default", "rope_theta": local}}


def _stated_theta(config: Mapping[str, Any]) -> Any:
    """The base that a config states at its top level or in either spelling, or the default."""
    entries = [config, *(config.get(name) or {} for name in SPELLINGS)]
    stated = [entry["rope_theta"] for entry in entries if entry.get("rope_theta") is not None]
    return stated[0] if stated else DEFAULT_THETA


def _read_one(config: Mapping[str, Any]) -> RopeSettings:
    """One setting, from both spellings and the top level."""
    _refuse_unknown_bases(config)
    spelled = [(name, _spelling(config, name)) for name in SPELLINGS if config.get(name)]
    method = _method(spelled)
    theta = _one_value(config, spelled, "rope_theta", "rotary_emb_base")
    share = _one_value(config, spelled, "partial_rotary_factor", "rotary_pct")
    share = _share_of_dims(config) if share is None else share
    if share is not None and share > 1:
        raise UserError(f"partial_rotary_factor is {share:g}: it must be at most 1")
    family = str(config.get("model_type"))
    share = FAMILY_PARTIAL_ROTARY_FACTOR.get(family, 1.0) if share is None else share
    parameters = _parameters(method, spelled)
    if method == "proportional":
        parameters = {"factor": 1.0, **parameters, "partial_rotary_factor": share}
    return RopeSettings(
        method=method,
        theta=FAMILY_THETA.get(family, DEFAULT_THETA) if theta is None else theta,
        partial_rotary_factor=1.0 if method == "proportional" else share,
        original_context=_original_context(config, spelled, method),
        parameters=parameters,
    )


def _share_of_dims(config: Mapping[str, Any]) -> float | None:
    """The share of a head that older configs state as a number of dims."""
    dims, heads = config.get("rotary_dim"), config.get("num_attention_heads")
    if not dims or not heads:
        return None
    head_dim = config.get("head_dim") or config.get("hidden_size", 0) // heads
    return float(dims / head_dim) if head_dim else None


Spelled = Sequence[tuple[str, Mapping[str, Any]]]


def _refuse_unknown_bases(config: Mapping[str, Any]) -> None:
    """Bases of some kind of layer in words that are not understood."""
    for key in _PER_LAYER_KEYS:
        if key != _LOCAL_THETA and config.get(key) is not None:
            raise UserError(
                f"{key} is {config[key]!r}: this spelling of rotary settings that differ between "
                "kinds of layers is not supported; write them into rope_parameters per layer type"
            )


def _spelling(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The entries of one spelling without its nulls."""
    entries = config[name]
    if not isinstance(entries, Mapping):
        raise UserError(
            f"{name} is {entries!r}: it must be an object or null; correct config.json"
        )
    return {key: value for key, value in entries.items() if value is not None}


def _method(spelled: Spelled) -> str:
    """The method that all spellings name; without any it is "none"."""
    named = [(name, _method_of(name, entries)) for name, entries in spelled]
    if not named:
        return "none"
    if any(method != named[0][1] for _, method in named):
        told = " but ".join(f"{name} says {_type_of(e)!r}" for name, e in spelled)
        raise UserError(f"{told}: they contradict each other; remove one from config.json")
    return named[0][1]


def _type_of(entries: Mapping[str, Any]) -> Any:
    return entries.get("rope_type", entries.get("type", "default"))


def _method_of(name: str, entries: Mapping[str, Any]) -> str:
    found = {key: entries[key] for key in ("rope_type", "type") if key in entries}
    for key, value in found.items():
        if not isinstance(value, str) or value not in TYPES:
            raise UserError(
                f"{name}.{key} is {value!r}: this type is unknown (known: {', '.join(TYPES)}); "
                "correct config.json, its positions cannot be reproduced otherwise"
            )
    if len({TYPES[value] for value in found.values()}) > 1:
        raise UserError(
            f"{name} says type {found['type']!r} and rope_type {found['rope_type']!r}: they "
            "contradict each other; remove one from config.json"
        )
    untyped = set(entries) - _NOT_PARAMETERS
    if not found and untyped:
        raise UserError(
            f"{name} has {', '.join(sorted(untyped))} but no rope_type: add the type to "
            f"config.json (one of {', '.join(TYPES)})"
        )
    return TYPES[found.popitem()[1]] if found else "none"


def _one_value(
    config: Mapping[str, Any], spelled: Spelled, key: str, *top_aliases: str
) -> float | None:
    """The number called `key` from the top level and from every spelling, which must agree."""
    from ctx_export.scaling._parameters import number

    places = [(name, config[name]) for name in (key, *top_aliases) if config.get(name) is not None]
    places += [(f"{name}.{key}", entries[key]) for name, entries in spelled if key in entries]
    values = [(place, number(value, place)) for place, value in places]
    for place, value in values[1:]:
        if value != values[0][1]:
            raise UserError(
                f"{values[0][0]} is {values[0][1]:g} but {place} is {value:g}: they contradict "
                "each other; correct config.json"
            )
    return values[0][1] if values else None


def _original_context(config: Mapping[str, Any], spelled: Spelled, method: str) -> int | None:
    """L where the config states one.

    Without scaling a top-level value is left alone, as in transformers: its Phi3Config writes 4096
    there whatever the model was trained with.
    """
    key = "original_max_position_embeddings"
    value = _one_value(config if method != "none" else {}, spelled, key)
    if value is not None and (value < 1 or value != int(value)):
        raise UserError(f"{key} is {value:g}: it must be a whole number of tokens")
    return None if value is None else int(value)


def _parameters(method: str, spelled: Spelled) -> dict[str, Any]:
    """The method's own keys, converted; the same ones in every spelling."""
    read = [(name, _parameters_of(name, entries, method)) for name, entries in spelled]
    if not read:
        return {}
    for name, values in read[1:]:
        first = read[0][1]
        for key in sorted({*first, *values}):
            if first.get(key) != values.get(key):
                raise UserError(
                    f"{read[0][0]}.{key} is {first.get(key)!r} but {name}.{key} is "
                    f"{values.get(key)!r}: they contradict each other; correct config.json"
                )
    return read[0][1]


def _parameters_of(name: str, entries: Mapping[str, Any], method: str) -> dict[str, Any]:
    from ctx_export.scaling import find, names
    from ctx_export.scaling._parameters import build, check, number

    given = {key: value for key, value in entries.items() if key not in _NOT_PARAMETERS}
    for key in REQUIRED.get(method, ()):
        if key not in given:
            raise UserError(
                f"{name}.{key} is missing: type {_type_of(entries)} needs it; correct config.json"
            )
    known = find(method) if method in names() else None
    values: dict[str, Any] = {}
    if "factor" in given and (known is None or known.uses_factor):
        values["factor"] = number(given.pop("factor"), f"{name}.factor")
    if known is None and given:
        raise UserError(f"{name}.{min(given)} is unknown for type {_type_of(entries)}")
    if known is not None:
        build(known.parameters, given, where=name)
        values.update(check(known.parameters, given, where=name))
    return values
