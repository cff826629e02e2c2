"""Checkpoints that cannot be exported, told from config.json before anything is traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctx_export.core.errors import UserError


def check_supported(config: Mapping[str, Any]) -> None:
    """Raise UserError with the reason and the way out, for a decoder that cannot be exported."""
    if config.get("kv_lora_rank"):
        raise UserError(
            f"config.json has kv_lora_rank = {config['kv_lora_rank']}: the model's attention "
            "keeps a latent vector in place of keys and values and rotates one part that all "
            "heads share, which no ctx operator computes; export a model with one key and one "
            "value per KV head"
        )
    if config.get("alibi"):
        raise UserError(
            "config.json has alibi = true: the model adds distances to its scores and has no "
            "rotary positions that could be scaled; export a model with rotary positions"
        )
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise UserError(
            f"config.json has quantization_config with quant_method {method}: quantised weights "
            "cannot be exported; load the model with transformers, dequantize() it, and export "
            "what save_pretrained writes"
        )
