"""The vocabulary of the rules: what settings a departure shows with."""

from __future__ import annotations

import math

from ctx_export.inspection.runtimes.base import Condition
from ctx_export.inspection.scaling_settings import ScalingSettings

# Two multipliers that differ by less rotate alike in any precision that a model has.
_SAME = 1e-4


def kind(*kinds: str) -> Condition:
    """The rope type is one of `kinds`, in today's words."""
    return lambda settings: settings.kind in kinds


def word(*words: str) -> Condition:
    """The rope type is written as one of `words`."""
    return lambda settings: settings.word in words


def given(*keys: str) -> Condition:
    """The entries state one of `keys`."""
    return lambda settings: any(key in settings.entries for key in keys)


def at_top_level(key: str) -> Condition:
    """config.json states `key` outside the entries."""
    return lambda settings: key in settings.top_level


def family(*families: str) -> Condition:
    """The checkpoint is of one of `families`."""
    return lambda settings: settings.family in families


def every(*conditions: Condition) -> Condition:
    """All of `conditions` hold."""
    return lambda settings: all(condition(settings) for condition in conditions)


def some(*conditions: Condition) -> Condition:
    """One of `conditions` holds."""
    return lambda settings: any(condition(settings) for condition in conditions)


def no(condition: Condition) -> Condition:
    """`condition` does not hold."""
    return lambda settings: not condition(settings)


def scaled(settings: ScalingSettings) -> bool:
    """Some scaling is asked for."""
    return settings.kind != "default"


def partial(settings: ScalingSettings) -> bool:
    """Part of every head is left unrotated."""
    return settings.partial


def windowed(settings: ScalingSettings) -> bool:
    """Some layer has a window."""
    return settings.window > 0


def per_kind(settings: ScalingSettings) -> bool:
    """Kinds of layers have settings of their own."""
    return settings.per_kind


def other_kinds_scaled(settings: ScalingSettings) -> bool:
    """Layers other than those that see farthest are scaled too."""
    return settings.other_kinds_scaled


def in_rope_parameters_only(settings: ScalingSettings) -> bool:
    """The settings stand in rope_parameters and not in rope_scaling."""
    return settings.spellings == {"rope_parameters"}


def theta_in_entries_only(settings: ScalingSettings) -> bool:
    """The base stands among the entries alone, and is another than the family's."""
    hidden = not {"rope_theta", "rotary_emb_base"} & settings.top_level
    return hidden and not math.isclose(settings.theta, settings.family_theta)


def partial_in_entries_only(settings: ScalingSettings) -> bool:
    """The share of the head that rotates stands among the entries alone."""
    hidden = not {"partial_rotary_factor", "rotary_pct", "rotary_dim"} & settings.top_level
    return hidden and "partial_rotary_factor" in settings.entries and settings.partial


def untruncated(settings: ScalingSettings) -> bool:
    """truncate is false, and rounding the ramp's ends would change the table."""
    return settings.entries.get("truncate") is False and _rounding_shows(settings)


def truncated(settings: ScalingSettings) -> bool:
    """The ramp's ends are to be rounded, and leaving that out changes the table."""
    return settings.entries.get("truncate") is not False and _rounding_shows(settings)


def _rounding_shows(settings: ScalingSettings) -> bool:
    return settings.kind == "yarn" and any(end != int(end) for end in settings.yarn_ramp())


def not_yarns_multiplier(settings: ScalingSettings) -> bool:
    """The multiplier is another than 0.1 · ln s + 1."""
    return _differs(settings.multiplier, settings.yarn_multiplier())


def not_the_ratios_multiplier(settings: ScalingSettings) -> bool:
    """longrope's multiplier is another than max_position_embeddings / L gives."""
    return _differs(settings.multiplier, settings.longrope_multiplier())


def attention_factor_shows(settings: ScalingSettings) -> bool:
    """attention_factor is stated, and is another than what follows from the other yarn keys."""
    if "attention_factor" not in settings.entries:
        return False
    mscale, all_dim = (settings.entries.get(key) for key in ("mscale", "mscale_all_dim"))
    without = settings.yarn_multiplier()
    if mscale and all_dim:
        without = settings.yarn_multiplier(mscale) / settings.yarn_multiplier(all_dim)
    return _differs(settings.multiplier, without)


def factor_is_not(value: float) -> Condition:
    """The entries state a factor other than `value`."""
    return lambda settings: _differs(float(settings.entries.get("factor", value)), value)


def original_is_not(tokens: int) -> Condition:
    """L is another number of tokens."""
    return lambda settings: settings.original_context != tokens


def reaches_past_original(settings: ScalingSettings) -> bool:
    """The model is used past L."""
    return settings.max_position_embeddings > settings.original_context


def _differs(first: float, second: float) -> bool:
    return not math.isclose(first, second, rel_tol=_SAME)
