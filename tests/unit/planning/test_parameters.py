"""Counts against the models that transformers makes of the same configs, without their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import ModelSpec
from ctx_export.frontends.checkpoint import model_spec, read_config_file, respelled
from ctx_export.planning.families import FAMILIES
from ctx_export.planning.parameters import Parameters, count_parameters
from tests.support.decoders import DECODERS, Decoder, decoder_entries

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
# Published sizes.
SHAPES: dict[str, dict[str, Any]] = {
    "llama2-7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "llama2-70b": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "llama3.1-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
    "phi3-mini": {
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "sliding_window": 2047,
        "pad_token_id": 32000,
    },
    "gemma2-9b": {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 256000,
        "sliding_window": 4096,
    },
    "gemma3-1b": {
        "model_type": "gemma3_text",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "sliding_window": 512,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "vocab_size": 201088,
        "sliding_window": 128,
    },
}
# Two that are widely quoted.
PUBLISHED = {"llama2-7b": 6738415616, "llama2-70b": 68976648192, "mixtral-8x7b": 46702792704}


def of_config(entries: dict[str, Any]) -> tuple[Parameters, ModelSpec]:
    config = respelled({"max_position_embeddings": 4096, "rope_parameters": PLAIN, **entries})
    spec = model_spec(config, "bf16")
    return count_parameters(config, spec), spec


def made_by_transformers(entries: dict[str, Any]) -> Any:
    """The model of a config, on PyTorch's meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    rest = {key: value for key, value in entries.items() if key != "model_type"}
    rest.setdefault("pad_token_id", 0)
    with torch.device("meta"):
        made = AutoConfig.for_model(entries["model_type"], **rest)
        model: Any = AutoModelForCausalLM.from_config(made)
    return model


def numbers(model: Any) -> int:
    """Tied weights once."""
    return sum(parameter.numel() for parameter in model.parameters())


def matrices_of_layers(model: Any, family: str, experts: float = 1.0) -> float:
    """Numbers of the layers' weight matrices; of experts the share that is chosen."""
    found = 0.0
    for name, parameter in model.named_parameters():
        inside = ".layers." in name or ".h." in name
        is_bias = name.endswith("bias") or "norm" in name or ".ln_" in name
        if inside and not is_bias and parameter.dim() > 1:
            found += parameter.numel() * (experts if ".experts." in name else 1)
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes_count_what_transformers_makes(name: str) -> None:
    counted, _ = of_config(SHAPES[name])
    model = made_by_transformers(SHAPES[name])
    assert counted.exact
    assert counted.total == numbers(model) == PUBLISHED.get(name, counted.total)
    assert counted.matrices == matrices_of_layers(model, name)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "gpt-oss-20b"])
def test_active_matrices_are_the_chosen_experts(name: str) -> None:
    shape = SHAPES[name]
    counted, _ = of_config(shape)
    share = shape["num_experts_per_tok"] / shape["num_local_experts"]
    assert counted.active_matrices == matrices_of_layers(made_by_transformers(shape), name, share)
    assert counted.has_experts


def of_decoder(decoder: Decoder, **entries: Any) -> dict[str, Any]:
    """The tests' tiny config of a family, its sizes made unlike each other."""
    uneven = {"hidden_size": 80, "intermediate_size": 56, "num_hidden_layers": 5}
    layered = {}
    for key in ("layer_types", "no_rope_layers"):
        if key in decoder.config:
            layered[key] = (decoder.config[key] * 3)[:5]
    if "head_dim" in decoder_entries(decoder):  # helium's heads have to add up to the hidden size
        uneven["head_dim"] = 20 if decoder.name == "helium" else 24
    given = {**decoder_entries(decoder), **uneven, **layered, **entries}
    return {
        "model_type": decoder.name,
        **{key: value for key, value in given.items() if key not in decoder.unsaid},
    }


@pytest.mark.parametrize("tied", [False, True, None])
@pytest.mark.parametrize("name", DECODERS)
def test_every_family_counts_what_transformers_makes(name: str, tied: bool | None) -> None:
    entries = of_decoder(DECODERS[name], tie_word_embeddings=tied)
    if tied is None:
        del entries["tie_word_embeddings"]
    counted, _ = of_config(entries)
    model = made_by_transformers(entries)
    assert counted.exact
    assert counted.total == numbers(model)
    share = 1 if not counted.has_experts else 2 / 3
    assert counted.matrices == matrices_of_layers(model, name)
    assert counted.active_matrices == pytest.approx(matrices_of_layers(model, name, share))


SWITCHES = {
    "attention_bias": None,
    "mlp_bias": None,
    "use_bias": ("starcoder2",),
    "bias": ("falcon",),
    "qkv_bias": ("qwen2_moe",),
    "use_qkv_bias": ("stablelm",),
    "use_qk_norm": ("cohere", "glm4_moe"),
    "qk_layernorm": ("phi", "persimmon", "stablelm"),
    "use_parallel_residual": ("stablelm",),
}


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_of_config_json_count_as_transformers_takes_them(
    switch: str, value: bool
) -> None:
    for name in SWITCHES[switch] or DECODERS:
        entries = of_decoder(DECODERS[name], **{switch: value})
        counted, _ = of_config(entries)
        assert counted.total == numbers(made_by_transformers(entries)), name


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
        ("falcon", {"new_decoder_architecture": False, "multi_query": False}),
        ("falcon", {"new_decoder_architecture": False, "parallel_attn": False}),
        ("falcon", {"num_ln_in_parallel_attn": 1}),
        ("falcon", {"ffn_hidden_size": None}),
        ("gptj", {"n_inner": 72}),
        ("qwen2_moe", {"decoder_sparse_step": 2}),
        ("qwen3_moe", {"mlp_only_layers": [0, 3]}),
        ("glm4_moe", {"first_k_dense_replace": 3, "n_shared_experts": 2}),
    ],
)
def test_variants_of_a_family(name: str, entries: dict[str, Any]) -> None:
    given = of_decoder(DECODERS[name], **entries)
    given = {key: value for key, value in given.items() if value is not None}
    counted, _ = of_config(given)
    assert counted.exact
    assert counted.total == numbers(made_by_transformers(given))


def test_every_tested_family_is_known() -> None:
    assert set(DECODERS) == set(FAMILIES)


def test_an_unknown_family_is_an_estimate() -> None:
    counted, _ = of_config({**SHAPES["llama2-7b"], "model_type": "llama-of-tomorrow"})
    assert (counted.total, counted.exact) == (PUBLISHED["llama2-7b"], False)
    experts = {**SHAPES["mixtral-8x7b"], "model_type": "mixture-of-tomorrow"}
    assert of_config(experts)[0].total == PUBLISHED["mixtral-8x7b"]


def test_an_mlp_without_a_width_is_an_estimate() -> None:
    entries = {k: v for k, v in SHAPES["llama2-7b"].items() if k != "intermediate_size"}
    counted, _ = of_config(entries)
    assert not counted.exact
    # 4·hidden in place of 11008, three matrices a layer.
    assert counted.total - PUBLISHED["llama2-7b"] == 32 * 3 * 4096 * (4 * 4096 - 11008)


def test_experts_without_a_number_are_refused() -> None:
    entries = {k: v for k, v in SHAPES["mixtral-8x7b"].items() if k != "num_experts_per_tok"}
    with pytest.raises(UserError, match="num_experts_per_tok = None"):
        of_config(entries)


def test_the_older_spellings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "gptj.json"
    path.write_text(
        json.dumps(
            {
                "model_type": "gptj",
                "n_embd": 64,
                "n_head": 4,
                "n_layer": 2,
                "n_positions": 128,
                "rotary_dim": 8,
                "vocab_size": 131,
                "tie_word_embeddings": False,
            }
        )
    )
    config = read_config_file(path)
    counted = count_parameters(config, model_spec(config, "fp16"))
    made = {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8, "vocab_size": 131}
    model = made_by_transformers(
        {"model_type": "gptj", **made, "tie_word_embeddings": False, "bos_token_id": 1}
    )
    assert counted.total == numbers(model)
