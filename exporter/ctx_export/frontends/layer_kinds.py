"""What kind every decoder layer is of: by config.json, by what its family takes for granted, and
by the modules that transformers makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ctx_export.core.errors import UserError
from ctx_export.core.rope_settings import SLIDING, WHOLE
from ctx_export.frontends.attention_backend import decoder_layers

if TYPE_CHECKING:
    from ctx_export.frontends.checkpoint import Checkpoint

# Families whose published config.json leaves the layers out: each of so many layers sees all.
_FAMILY_PATTERN = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "olmo3": 4}
# Families that rotate in layers with a window only, where any layer has one.
_WINDOWED_ROTATE = frozenset({"afmoe", "cohere2", "exaone4", "exaone_moe"})
# Per-layer lists of transformers' configs that its forward reads.
_LISTS = ("layer_types", "no_rope_layers")


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


def stated_kinds(checkpoint: Checkpoint) -> list[tuple[str, bool]]:
    """The type of every layer by config.json and whether it rotates."""
    config, layers = checkpoint.config, checkpoint.spec.layers
    types = layer_types(config, layers) or [WHOLE] * layers
    return list(zip(types, rotating_layers(config, layers), strict=True))


def keep_one_of_each(decoder: Any, stated: Sequence[tuple[str, bool]]) -> list[int]:
    """Leave one layer of each kind in `decoder`, in place; returns which of them every layer is.

    Layers are of one kind where config.json states the same, their modules hold tensors of the
    same names and shapes, and have the same settings: a dense layer before experts is a kind of
    its own.
    """
    name, layers = decoder_layers(decoder)
    own = [(kind, _made_of(layer)) for kind, layer in zip(stated, layers, strict=True)]
    kinds = list(dict.fromkeys(own))
    first = [own.index(kind) for kind in kinds]
    config = decoder.config
    lists = {key: list(getattr(config, key, None) or ()) for key in _LISTS}
    config.num_hidden_layers = len(first)
    for key, entries in lists.items():
        if entries:
            setattr(config, key, [entries[layer] for layer in first])
    parent, _, attribute = name.rpartition(".")
    setattr(decoder.get_submodule(parent), attribute, type(layers)(layers[i] for i in first))
    return [kinds.index(kind) for kind in own]


def _made_of(layer: Any) -> tuple[tuple[str, Any], ...]:
    """A layer's tensors and its modules' settings; whole numbers may be the layer's own."""
    held = [*layer.named_parameters(), *layer.named_buffers()]
    tensors = [(name, tuple(tensor.shape)) for name, tensor in held]
    settings = [
        (f"{name}.{key}", value if isinstance(value, (bool, float, str)) else type(value).__name__)
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if value is None or isinstance(value, (bool, int, float, str))
    ]
    return (*tensors, *settings)
