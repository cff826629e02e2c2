"""Checkpoints that cannot be exported, told from config.json before anything is traced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.rope_settings import SLIDING, SPELLINGS, WHOLE

_TEXT_KEYS = ("text_config", "llm_config", "language_config")
_LAYER_KEYS = ("layer_types", "layers_block_type")
_ATTENTIONS = (WHOLE, SLIDING, "attention")
# Sizes of a state that layers carry from token to token, by the families that have them.
_STATE_KEYS = (
    "attention_hidden_size",
    "linear_conv_kernel_dim",
    "lru_width",
    "mamba_d_state",
    "ssm_cfg",
    "state_size",
)
# Families whose config.json does not say what else tells of it.
_ALIBI = frozenset({"bloom", "mpt"})
_TEMPERATURES = frozenset({"llama4_text"})


def check_supported(config: Mapping[str, Any]) -> None:
    """Raise UserError with the reason and the way out, for a decoder that cannot be exported."""
    for reason in _reasons(config):
        raise UserError(f"config.json has {reason}")


def _reasons(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _of_other_models(config)
    yield from _of_layers(config)
    yield from _of_attention(config)
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        yield (
            f"quantization_config with quant_method {method}: quantised weights cannot be "
            "exported; load the model with transformers, dequantize() it, and export what "
            "save_pretrained writes"
        )


def _of_other_models(config: Mapping[str, Any]) -> Iterator[str]:
    """Models that are no decoder of text, or more than that."""
    nested = next((key for key in _TEXT_KEYS if isinstance(config.get(key), Mapping)), None)
    if nested is not None:
        yield (
            f"{nested}: the decoder is a part of a {config.get('model_type')} model; make it with "
            f"AutoModelForCausalLM.from_config of that part, load its weights, and export what "
            "save_pretrained writes"
        )
    if config.get("is_encoder_decoder"):
        yield (
            "is_encoder_decoder = true: the decoder also attends to an encoder's states, which "
            "no ctx operator does; export a decoder-only model"
        )
    made = [str(name) for name in config.get("architectures") or ()]
    if made and all(name.endswith("ForMaskedLM") for name in made):
        yield (
            f"architectures = {made}: tokens of an encoder see those after them; export a "
            "decoder-only model"
        )


def _of_layers(config: Mapping[str, Any]) -> Iterator[str]:
    """Layers without keys and values of every token that they see."""
    types = next((config[key] for key in _LAYER_KEYS if config.get(key)), None)
    other = sorted({str(kind) for kind in types or ()} - set(_ATTENTIONS))
    if other and "chunked" in other[0]:
        yield (
            f"layers of type {other[0]}: their tokens see those of their own chunk, and only "
            f"layers of type {WHOLE} and {SLIDING} can be exported"
        )
    if other:
        yield (
            f"layers of type {other[0]}: only layers of type {WHOLE} and {SLIDING} can be "
            "exported, which keep a key and a value of each token and no running state; export a "
            "model whose layers all are"
        )
    state = next((key for key in _STATE_KEYS if config.get(key)), None)
    if state is not None and types is None:
        yield (
            f"{state} = {config[state]}: layers that carry a state from token to token keep no "
            "keys and values; export a model with attention in every layer"
        )


def _of_attention(config: Mapping[str, Any]) -> Iterator[str]:
    """Attention of keys and values that is no softmax of rotated queries and keys alone."""
    if config.get("kv_lora_rank"):
        yield (
            f"kv_lora_rank = {config['kv_lora_rank']}: the model's attention keeps a latent "
            "vector in place of keys and values and rotates one part that all heads share, which "
            "no ctx operator computes; export a model with one key and one value per KV head"
        )
    family = str(config.get("model_type"))
    if config.get("alibi") or family in _ALIBI:
        told = "alibi = true" if config.get("alibi") else f"model_type {family}"
        yield (
            f"{told}: the model adds distances to its scores (ALiBi) and has no rotary positions "
            "that could be scaled; export a model with rotary positions"
        )
    tuned = [f"{name}.llama_4_scaling_beta" for name in SPELLINGS if _beta(config.get(name))]
    if config.get("attn_temperature_tuning", family in _TEMPERATURES):
        tuned.append("attn_temperature_tuning")
    if tuned:
        yield (
            f"{tuned[0]}: the model scales its queries by their positions, which would have to "
            "follow the scaled context too; export a model without it"
        )


def _beta(entries: Any) -> Any:
    return isinstance(entries, Mapping) and entries.get("llama_4_scaling_beta")
