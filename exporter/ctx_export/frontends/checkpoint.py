"""A Hugging Face checkpoint directory as a `ModelSpec` and the places of its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import PRECISIONS, ModelSpec
from ctx_export.core.rope_settings import (
    SLIDING,
    RopeSettings,
    main_settings,
    read_layer_rope_settings,
)
from ctx_export.frontends.head_counts import kv_heads
from ctx_export.frontends.layer_kinds import layer_types, rotating_layers
from ctx_export.frontends.refusals import check_supported
from ctx_export.frontends.shards import Tensor, TensorLocation, read_shards

PRECISION_OF = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# Older families' spellings of the keys that every decoder has.
_SPELLINGS = {
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "n_positions": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "num_kv_heads": "num_key_value_heads",
    "n_head_kv": "num_key_value_heads",
}
_HUB_FILES = ("*.json", "*.safetensors", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk; `config` is config.json as it stands."""

    directory: Path
    config: Mapping[str, Any]
    spec: ModelSpec
    tensors: Mapping[str, Tensor]

    def config_ties(self) -> bool:
        """Whether input embedding and output projection are one tensor."""
        return bool(self.config.get("tie_word_embeddings", "lm_head.weight" not in self.tensors))


def locate(model: str) -> Path:
    """Directory of `demo`, a local checkpoint or a hub id (downloaded to the hub's cache)."""
    if model == "demo":
        from ctx_export import demo

        return demo.path()
    path = Path(model)
    if path.is_dir():
        return path
    if path.suffix == ".onnx":
        raise UserError(
            f"{model} is an ONNX file: a checkpoint is needed here; name the one it was made from"
        )
    if path.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(f"{model} is not a checkpoint directory, a hub id (owner/name) or demo")
    return _download(model)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # the hub client raises dozens of unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{model} is no local directory and could not be downloaded from the hub ({reason}); "
            "give the path of a checkpoint directory"
        ) from None


def read_checkpoint(directory: Path) -> Checkpoint:
    """Config and tensor places of a checkpoint directory, without reading any weight.

    Raises UserError for a missing or broken config, an unknown rope setting, a decoder that cannot
    be exported, or bad shards.
    """
    config = read_config(directory)
    check_supported(config)
    tensors = read_shards(directory)
    spec = model_spec(config, _stored_precision(config, tensors))
    return Checkpoint(directory=directory, config=config, spec=spec, tensors=tensors)


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory."""
    path = directory / "config.json"
    if not path.exists():
        raise UserError(f"{directory} has no config.json: it is not a checkpoint")
    return read_config_file(path)


def read_config_file(path: Path) -> dict[str, Any]:
    """A file that holds what config.json does."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object")
    return respelled(config)


def respelled(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with older families' keys under the names that most families use, too."""
    stated = {key: value for key, value in config.items() if value is not None}
    usual = {_SPELLINGS.get(key, key): value for key, value in stated.items()}
    return {**config, **usual, **stated}


def _stored_precision(config: Mapping[str, Any], tensors: Mapping[str, TensorLocation]) -> str:
    """The weights' own precision; the config's `dtype` only where the tensors disagree."""
    by_bytes: dict[str, int] = {}
    names = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
    for location in tensors.values():
        if location.dtype in names:
            key = names[location.dtype]
            by_bytes[key] = by_bytes.get(key, 0) + location.length
    if not by_bytes:
        found = sorted({t.dtype for t in tensors.values()})
        raise UserError(f"weights are of type {found}: only F32, F16 and BF16 can be exported")
    stated = PRECISION_OF.get(str(config.get("dtype") or config.get("torch_dtype")))
    return stated if stated in by_bytes else max(by_bytes, key=lambda key: by_bytes[key])


def model_spec(config: Mapping[str, Any], precision: str) -> ModelSpec:
    """`ModelSpec` of a config.json; raises UserError naming a key that is missing or unusable."""
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    layers = _count(config, "num_hidden_layers")
    heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    ropes = read_layer_rope_settings(config)
    return ModelSpec(
        family=_text(config, "model_type"),
        layers=layers,
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_dim=_count(config, "head_dim", hidden // heads),
        vocab=_count(config, "vocab_size"),
        hidden=hidden,
        max_position_embeddings=_count(config, "max_position_embeddings"),
        precision=precision,
        rope=main_settings(ropes),
        windows=_windows(config, layers),
        ropes=_ropes(config, layers, ropes),
        bos_token_id=config.get("bos_token_id"),
        eos_token_ids=_ids(config.get("eos_token_id")),
    )


def _ropes(
    config: Mapping[str, Any], layers: int, ropes: Mapping[str, RopeSettings]
) -> tuple[RopeSettings, ...]:
    """Every layer's own position settings; empty where all share one."""
    rotating = rotating_layers(config, layers)
    if "" in ropes:
        still = replace(ropes[""], rotates=False)
        own = tuple(ropes[""] if rotates else still for rotates in rotating)
        return () if all(rotating) else own
    types = layer_types(config, layers)
    if types is None:
        raise UserError(
            f"config.json has rotary settings for {', '.join(ropes)} and no layer_types: state "
            "there which layer is of which kind"
        )
    missing = sorted(set(types) - set(ropes))
    if missing:
        raise UserError(f"config.json has no rotary settings for layers of type {missing[0]}")
    return tuple(ropes[kind] for kind in types)


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Every layer's own sliding window in tokens, 0 for none."""
    window = config.get("sliding_window") or 0
    types = layer_types(config, layers)
    if config.get("use_sliding_window") is False or not window:
        return (0,) * layers
    if types is None:
        return (window,) * layers
    return tuple(window if kind == SLIDING else 0 for kind in types)


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"config.json has {key} = {value!r}: a decoder needs a number ≥ 1 there")
    return value


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    return _count({"num_key_value_heads": kv_heads(config, heads)}, "num_key_value_heads")


def stated_kv_heads(directory: Path) -> int:
    """The number of KV heads of a checkpoint directory."""
    config = read_config(directory)
    return _kv_heads(config, _count(config, "num_attention_heads"))


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"config.json has {key} = {value!r}: it must name the model's type")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
