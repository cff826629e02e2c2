"""How many KV heads a decoder has, by config.json: families count them in words of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kv_heads(config: Mapping[str, Any], heads: int) -> Any:
    """The number of KV heads that `config` states, unchecked; `heads` where it states none."""
    if config.get("model_type") == "falcon":
        return _of_falcon(config, heads)
    stated = config.get("num_key_value_heads")
    return heads if stated is None else stated


def _of_falcon(config: Mapping[str, Any], heads: int) -> Any:
    """falcon uses its number of KV heads with the new architecture only; else it has one, or as
    many as query heads."""
    if config.get("new_decoder_architecture"):
        stated = config.get("num_key_value_heads")
        return heads if stated is None else stated
    return 1 if config.get("multi_query", True) else heads
