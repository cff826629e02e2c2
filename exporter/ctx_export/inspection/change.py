"""What a method would change on a checkpoint, and the config.json that would say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctx_export.core.manifest import BOUNDED
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.plan import Plan, describe_caches, make_plan
from ctx_export.core.recipe import Recipe
from ctx_export.core.rope_settings import WHOLE

# Methods whose frequencies no rope type of Hugging Face computes.
_WITHOUT_TYPE = {
    "dynamic-yarn": "no rope type has a yarn factor that follows the length of the text",
}
_GROWS = "dynamic-ntk"  # its max_position_embeddings is where growing begins, not where it ends


def describe_change(config: Mapping[str, Any], spec: ModelSpec, recipe: Recipe) -> dict[str, Any]:
    """The plan of the checkpoint as it stands beside that of `recipe`, as JSON values, with the
    keys of config.json that express it; `new_config` is that config.json, None where none can."""
    before = make_plan(spec, Recipe(model=recipe.model))
    after = make_plan(spec, recipe)
    reason = inexpressible(after)
    new = None if reason else config_of(config, after)
    return {
        "before": _side(before),
        "after": _side(after),
        "config": None if new is None else _changed(config, new),
        "inexpressible": reason,
        "new_config": new,
    }


def inexpressible(plan: Plan) -> str | None:
    """Why no config.json can say what `plan` bakes in; None where one can."""
    reaching = [cache.rule for cache in plan.caches if cache.parameters is not None]
    if reaching:
        return f"no key of Hugging Face's config.json means {reaching[0]}"
    bounded = [
        cache
        for cache, own in zip(plan.caches, plan.spec.windows, strict=True)
        if cache.policy == BOUNDED and (cache.sinks or cache.window != own)
    ]
    if bounded:
        return (
            f"no key of Hugging Face's config.json means a cache of fixed size ({bounded[0].rule})"
        )
    return _WITHOUT_TYPE.get(plan.method)


def config_of(config: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """`config` with the position settings of `plan`, in the spelling that it has: rope_scaling
    where it uses that or states rope_theta at the top level, else rope_parameters."""
    from ctx_export.validate.rope_parameters import Scaling, Trained, rope_parameters

    scaling = Scaling(
        method=plan.method,
        parameters=plan.parameters,
        factor=plan.factor,
        original_context=plan.original_context,
        target=plan.max_context or plan.original_context,
    )
    rope = plan.spec.rope
    share = float(rope.parameters.get("partial_rotary_factor", rope.partial_rotary_factor))
    trained = Trained(theta=rope.theta, partial_rotary_factor=share, head_dim=plan.spec.head_dim)
    entries = rope_parameters(scaling, trained)
    new = dict(config)
    if plan.method != _GROWS and plan.max_context is not None:
        new["max_position_embeddings"] = plan.max_context
    if new.get("original_max_position_embeddings"):
        new["original_max_position_embeddings"] = plan.original_context
    return _spelled(new, entries)


def _spelled(config: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """`config` with `entries` in its own spelling."""
    nested = _nested(config)
    if nested is not None:
        spelling, kinds = nested
        main = WHOLE if WHOLE in kinds else next(iter(kinds))
        return {**config, spelling: {**kinds, main: entries}}
    older = bool(config.get("rope_scaling")) or config.get("rope_theta") is not None
    if not older:
        return {**config, "rope_parameters": entries}
    theta = entries.pop("rope_theta")
    share = entries.pop("partial_rotary_factor", None)
    plain = entries.get("rope_type") == "default"
    config = {**config, "rope_theta": theta, "rope_scaling": None if plain else entries}
    config.pop("rope_parameters", None)
    if share is not None and not {"rotary_pct", "rotary_dim"} & set(config):
        config["partial_rotary_factor"] = share
    return config


def _nested(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The settings per kind of layer with the spelling they are under."""
    for spelling in ("rope_parameters", "rope_scaling"):
        entries = config.get(spelling)
        if isinstance(entries, Mapping) and any(isinstance(v, Mapping) for v in entries.values()):
            return spelling, dict(entries)
    return None


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `new` that differ from `old`; a key that is gone is null."""
    keys = [*new, *(key for key in old if key not in new)]
    return {key: new.get(key) for key in keys if new.get(key) != old.get(key)}


def _side(plan: Plan) -> dict[str, Any]:
    table = plan.table
    return {
        "method": plan.method,
        "factor": plan.factor,
        "parameters": dict(plan.parameters),
        "frequencies": len(table.inv_freq),
        "highest": float(table.inv_freq.max()),
        "lowest": float(table.inv_freq.min()),
        "multiplier": table.multiplier,
        "follows_length": plan.length_table is not None,
        "max_context": plan.max_context,
        "caches": describe_caches(plan.caches),
        "cache_bytes_per_sequence": plan.cache_bytes,
    }
