"""Tiny random checkpoints of decoder families, each with what sets it apart."""

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
    apart: str = ""  # for the README's table
    config: dict[str, Any] = field(default_factory=dict)
    partial: float = 1.0  # share of the head that rotates
    local: dict[str, Any] | None = None  # rotary settings of the layers with a window
    unsaid: tuple[str, ...] = ()  # settings of save_decoder that its config does not know

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
EXPERTS_APART = (
    "experts: every expert computes every token, which costs as many times more as there are "
    "experts to one chosen"
)
DECODERS = {
    decoder.name: decoder
    for decoder in (
        Decoder(name="llama", apart="every method is tested, in three precisions"),
        Decoder(
            name="mistral",
            apart="as llama; layers may have windows",
            config={"head_dim": 16, "sliding_window": WINDOW},
        ),
        Decoder(name="qwen2", apart="as llama; q, k and v have biases"),
        Decoder(
            name="qwen3", apart="as llama; queries and keys are normed", config={"head_dim": 16}
        ),
        Decoder(
            name="phi3",
            apart="as llama; one projection for q, k and v, part of the head may rotate",
            partial=0.5,
            config={"original_max_position_embeddings": ORIGINAL_CONTEXT},
        ),
        Decoder(name="gemma", apart="embeddings scaled by a constant", config={"head_dim": 24}),
        Decoder(
            name="gemma2",
            apart="logits capped, windows in every other layer",
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
            apart="layers with a window have a table of their own",
            config={"head_dim": 16, **WINDOWED},
            local={"rope_type": "default", "rope_theta": 1000.0},
        ),
        Decoder(
            name="phi",
            apart="part of the head rotates; parallel blocks",
            partial=0.5,
            config={"tie_word_embeddings": False},
        ),
        Decoder(
            name="gpt_neox",
            apart="as phi; one projection for q, k and v",
            partial=0.25,
            config={"tie_word_embeddings": False},
            unsaid=("num_key_value_heads",),
        ),
        Decoder(
            name="gptj",
            apart="sines and cosines come from a buffer",
            config={"rotary_dim": 8, "tie_word_embeddings": False},
            unsaid=("num_key_value_heads", "rope_parameters", "intermediate_size"),
        ),
        Decoder(
            name="cohere",
            apart="neighbouring dims rotate together",
            config={"logit_scale": 0.5, "use_qk_norm": True},
        ),
        Decoder(
            name="cohere2",
            apart="as cohere; layers that see every token know no positions",
            config={"head_dim": 16, "logit_scale": 0.5, **WINDOWED},
        ),
        Decoder(
            name="mixtral",
            apart=EXPERTS_APART,
            config={**EXPERTS, "num_local_experts": 3, "head_dim": 16},
        ),
        Decoder(
            name="qwen2_moe",
            apart=EXPERTS_APART,
            config={**EXPERTS, "shared_expert_intermediate_size": 24},
        ),
        Decoder(name="qwen3_moe", apart=EXPERTS_APART, config={**EXPERTS, "head_dim": 16}),
        Decoder(
            name="gpt_oss",
            apart="learned logits of the heads in the softmax, experts, windows in every other "
            "layer",
            config={**EXPERTS, "num_local_experts": 3, "head_dim": 16, **WINDOWED},
        ),
        Decoder(
            name="falcon",
            apart="keys of one, of groups or of all heads, repeated before they are rotated",
            config={
                "new_decoder_architecture": True,
                "num_kv_heads": 2,
                "ffn_hidden_size": 48,
            },
            unsaid=("num_key_value_heads",),
        ),
        Decoder(
            name="exaone4",
            apart="layers that see every token know no positions; norms after the blocks",
            config={"head_dim": 16, **WINDOWED},
        ),
        Decoder(
            name="olmo3",
            apart="layers with a window keep the table they were trained with",
            config=WINDOWED,
            local=PLAIN,
        ),
        # Nothing in the exporter names these.
        Decoder(name="apertus", apart="an activation with learned numbers"),
        Decoder(
            name="glm4",
            apart="part of the head rotates, neighbouring dims together",
            partial=0.5,
            config={"head_dim": 16},
        ),
        Decoder(
            name="glm4_moe",
            apart="dense layers before experts",
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
            apart="scores, embeddings, residuals and logits scaled by constants",
            config={
                "attention_multiplier": 0.4,
                "embedding_multiplier": 3.0,
                "residual_multiplier": 0.7,
                "logits_scaling": 2.0,
            },
        ),
        Decoder(name="helium", apart="neighbouring dims rotate together", config={"head_dim": 16}),
        Decoder(
            name="minimax_m2",
            apart="experts chosen by sigmoids; queries and keys are normed over all heads",
            partial=0.5,
            config={"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 16},
        ),
        Decoder(name="nemotron", apart="part of the head rotates", partial=0.5),
        Decoder(name="olmo", apart="q, k and v are clipped", config={"clip_qkv": 1.5}),
        Decoder(name="olmo2", apart="norms after the blocks and of queries and keys"),
        Decoder(
            name="persimmon",
            apart="one projection for q, k and v; part of the head rotates",
            partial=0.5,
            config={"tie_word_embeddings": False},
            unsaid=("num_key_value_heads",),
        ),
        Decoder(
            name="smollm3",
            apart="some layers know no positions",
            config={"no_rope_layers": [1, 0]},
        ),
        Decoder(
            name="stablelm",
            apart="part of the head rotates; every head has a norm of its own",
            partial=0.25,
            config={"qk_layernorm": True},
        ),
        Decoder(
            name="starcoder2",
            apart="layer norms and biases; layers may have windows",
            config={"sliding_window": WINDOW},
        ),
    )
}


def decoder_entries(decoder: Decoder) -> dict[str, Any]:
    """Entries of a config.json of two layers."""
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
    return {key: value for key, value in entries.items() if key not in decoder.unsaid}


def save_decoder(decoder: Decoder, directory: Path) -> Path:
    """A checkpoint of two layers with random weights in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    entries = decoder_entries(decoder)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(decoder.name, **entries))
    randomise(model)
    model.save_pretrained(directory)
    return directory
