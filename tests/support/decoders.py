"""Tiny random checkpoints of further decoder families, each with what sets it apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.families import ORIGINAL_CONTEXT, THETA, VOCAB, randomise

WINDOW = 100  # between the trained context and the lengths that are tested
ALTERNATING = ["sliding_attention", "full_attention"]
PLAIN = {"rope_type": "default", "rope_theta": THETA}


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """A family's checkpoint: its config, and the rotary settings of its kinds of layers if any.
    None in the config leaves out what all others state."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    partial: float = 1.0  # share of the head that rotates
    local: dict[str, Any] | None = None  # rotary settings of the layers with a window

    def rope(self, **entries: Any) -> dict[str, Any]:
        """rope_parameters with `entries` for the layers that see every token."""
        own = {**PLAIN, **entries}
        if self.partial != 1.0:
            own["partial_rotary_factor"] = self.partial
        if self.local is None:
            return own
        return {"full_attention": own, "sliding_attention": self.local}


WINDOWED = {"sliding_window": WINDOW, "layer_types": ALTERNATING}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DECODERS = {
    decoder.name: decoder
    for decoder in (
        Decoder(name="gemma", config={"head_dim": 24}),
        Decoder(
            name="gemma2",
            config={
                "head_dim": 16,
                "query_pre_attn_scalar": 24,
                "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 8.0,
                **WINDOWED,
            },
        ),
        Decoder(
            name="gemma3_text",
            config={"head_dim": 16, **WINDOWED},
            local={"rope_type": "default", "rope_theta": 1000.0},
        ),
        Decoder(name="phi", partial=0.5, config={"tie_word_embeddings": False}),
        Decoder(
            name="gpt_neox",
            partial=0.25,
            config={"num_key_value_heads": None, "tie_word_embeddings": False},
        ),
        Decoder(name="cohere", config={"logit_scale": 0.5, "use_qk_norm": True}),
        Decoder(name="cohere2", config={"head_dim": 16, "logit_scale": 0.5, **WINDOWED}),
        Decoder(name="mixtral", config={**EXPERTS, "num_local_experts": 3, "head_dim": 16}),
        Decoder(name="qwen2_moe", config={**EXPERTS, "shared_expert_intermediate_size": 24}),
        Decoder(name="qwen3_moe", config={**EXPERTS, "head_dim": 16}),
        Decoder(
            name="gpt_oss",
            config={**EXPERTS, "num_local_experts": 3, "head_dim": 16, **WINDOWED},
        ),
        # Keys repeated before they are rotated.
        Decoder(
            name="falcon",
            config={
                "new_decoder_architecture": True,
                "num_kv_heads": 2,
                "num_key_value_heads": None,
                "ffn_hidden_size": 48,
            },
        ),
        # Their layers differ by settings that the exporter names.
        Decoder(name="exaone4", config={"head_dim": 16, **WINDOWED}),
        Decoder(name="olmo3", config=WINDOWED, local=PLAIN),
        # Nothing in the exporter names these.
        Decoder(name="apertus"),
        Decoder(name="glm4", partial=0.5, config={"head_dim": 16}),
        Decoder(
            name="glm4_moe",
            partial=0.5,
            config={
                "moe_intermediate_size": 32,
                "num_experts_per_tok": 2,
                "n_routed_experts": 3,
                "n_shared_experts": 1,
                "first_k_dense_replace": 1,
                "n_group": 1,
                "topk_group": 1,
                "head_dim": 16,
            },
        ),
        Decoder(
            name="granite",
            config={
                "attention_multiplier": 0.4,
                "embedding_multiplier": 3.0,
                "residual_multiplier": 0.7,
                "logits_scaling": 2.0,
            },
        ),
        Decoder(name="helium", config={"head_dim": 16}),
        Decoder(
            name="minimax_m2",
            partial=0.5,
            config={"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 16},
        ),
        Decoder(name="nemotron", partial=0.5),
        Decoder(name="olmo", config={"clip_qkv": 1.5}),
        Decoder(name="olmo2"),
        Decoder(
            name="persimmon",
            partial=0.5,
            config={"num_key_value_heads": None, "tie_word_embeddings": False},
        ),
        Decoder(name="smollm3", config={"no_rope_layers": [1, 0]}),
        Decoder(name="stablelm", partial=0.25, config={"qk_layernorm": True}),
        Decoder(name="starcoder2", config={"sliding_window": WINDOW}),
    )
}


def save_decoder(decoder: Decoder, directory: Path) -> Path:
    """A checkpoint of two layers with random weights in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    entries = {
        "vocab_size": VOCAB,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "intermediate_size": 48,
        "max_position_embeddings": ORIGINAL_CONTEXT,
        "tie_word_embeddings": True,
        "rope_parameters": decoder.rope(),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **decoder.config,
    }
    stated = {key: value for key, value in entries.items() if value is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(decoder.name, **stated))
    randomise(model)
    model.save_pretrained(directory)
    return directory
