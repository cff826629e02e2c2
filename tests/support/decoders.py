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
    """A family's checkpoint: its config, and the rotary settings of its kinds of layers if any."""

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
        Decoder(name="gpt_neox", partial=0.25, config={"tie_word_embeddings": False}),
        Decoder(name="cohere", config={"logit_scale": 0.5, "use_qk_norm": True}),
        Decoder(name="cohere2", config={"head_dim": 16, "logit_scale": 0.5, **WINDOWED}),
        Decoder(name="mixtral", config={**EXPERTS, "num_local_experts": 3, "head_dim": 16}),
        Decoder(name="qwen2_moe", config={**EXPERTS, "shared_expert_intermediate_size": 24}),
        Decoder(name="qwen3_moe", config={**EXPERTS, "head_dim": 16}),
        Decoder(
            name="gpt_oss",
            config={**EXPERTS, "num_local_experts": 3, "head_dim": 16, **WINDOWED},
        ),
        # Nothing in the exporter names these.
        Decoder(name="glm4", partial=0.5, config={"head_dim": 16}),
        Decoder(name="olmo2"),
        Decoder(name="smollm3", config={"no_rope_layers": [1, 0]}),
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
    if decoder.name == "gpt_neox":
        del entries["num_key_value_heads"]  # as many as query heads, always
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(decoder.name, **entries))
    randomise(model)
    model.save_pretrained(directory)
    return directory
