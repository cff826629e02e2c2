"""What kind every decoder layer is of, by config.json or by what its family takes for granted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.rope_settings import SLIDING, WHOLE

# Families whose published config.json leaves the layers out: each of so many layers sees all.
_FAMILY_PATTERN = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6, "gpt_oss": 2}
# Families that rotate in layers with a window only, where any layer has one.
_WINDOWED_ROTATE = frozenset({"cohere2"})


def layer_types(config: Mapping[str, Any], layers: int) -> list[str] | None:
    """The kind of every layer; None where all are alike. Raises UserError for a list of another
    length than the model's."""
    types = config.get("layer_types")
    every = config.get("sliding_window_pattern")
    if types is None and every is None:
        every = _FAMILY_PATTERN.get(str(config.get("model_type")))
    if types is None and every:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UserError(
                f"config.json has sliding_window_pattern = {every!r}: state layer_types there"
            )
        types = [SLIDING if (layer + 1) % every else WHOLE for layer in range(layers)]
    full = config.get(
        "max_window_layers"
    )  # qwen: that many layers see all before those that do not
    if types is None and full is not None and config.get("use_sliding_window"):
        types = [WHOLE if layer < int(full) else SLIDING for layer in range(layers)]
    if types is not None and len(types) != layers:
        raise UserError(f"config.json has {len(types)} layer_types for {layers} layers")
    return types


def rotating_layers(config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Whether each layer rotates its queries and keys; the others know no positions (NoPE)."""
    stated = config.get("no_rope_layers")  # 1 for a layer that rotates, 0 for one that does not
    every = config.get("no_rope_layer_interval")
    if stated:
        if len(stated) != layers:
            raise UserError(f"config.json has {len(stated)} no_rope_layers for {layers} layers")
        return tuple(bool(rotates) for rotates in stated)
    if every:
        return tuple((layer + 1) % int(every) != 0 for layer in range(layers))
    types = layer_types(config, layers)
    if (
        str(config.get("model_type")) in _WINDOWED_ROTATE
        and types
        and config.get("sliding_window")
    ):
        return tuple(kind == SLIDING for kind in types)
    return (True,) * layers
