"""Position settings whose tables other libraries were asked for, as entries of a config.json.

The base of every case is a llama of one layer and one head of 64 dims, trained on 512 tokens.
"""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "rope_theta": 10000.0,
}
ORIGINAL = {"original_max_position_embeddings": 512}
YARN = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}
BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    **ORIGINAL,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 32,
    "long_factor": [2.0] * 32,
    **ORIGINAL,
}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


def scaled(entries: dict[str, Any], **others: Any) -> dict[str, Any]:
    """A config.json with `entries` as rope_scaling."""
    return {**BASE, "rope_scaling": entries, **others}


def length(config: dict[str, Any]) -> int:
    """The length of text at which tables are compared: where a dynamic one has grown."""
    kind = config.get("rope_scaling", {}).get("rope_type")
    return int(config["max_position_embeddings"]) * (2 if kind == "dynamic" else 1)


CASES: dict[str, dict[str, Any]] = {
    "plain": BASE,
    "linear": scaled({"rope_type": "linear", "factor": 4.0}),
    "linear, older key": scaled({"type": "linear", "factor": 4.0}),
    "dynamic": scaled({"rope_type": "dynamic", "factor": 4.0}),
    "yarn": scaled({**YARN, **BETAS}),
    "yarn without betas": scaled(YARN),
    "yarn untruncated": scaled({**YARN, **BETAS, "truncate": False}),
    "yarn attention_factor": scaled({**YARN, **BETAS, "truncate": False, "attention_factor": 1.0}),
    "yarn mscale": scaled({**YARN, **BETAS, "truncate": False, "mscale": 1.2}),
    "yarn both mscales": scaled(
        {**YARN, **BETAS, "truncate": False, "mscale": 0.7, "mscale_all_dim": 0.3}
    ),
    "yarn of a short context": scaled(
        {**YARN, **BETAS, "original_max_position_embeddings": 64, "truncate": False}
    ),
    "yarn over half a head": scaled({**YARN, **BETAS}, partial_rotary_factor=0.5),
    "yarn in rope_parameters": {
        **{key: value for key, value in BASE.items() if key != "rope_theta"},
        "rope_parameters": {**YARN, **BETAS, "rope_theta": 10000.0},
    },
    "base in rope_parameters": {
        **{key: value for key, value in BASE.items() if key != "rope_theta"},
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "llama3": scaled(LLAMA3),
    "longrope": scaled(LONGROPE),
    "longrope, L at the top level": scaled(LONGROPE, **ORIGINAL),
    "longrope with a factor": scaled({**LONGROPE, "factor": 4.0}),
    "half a head": {**BASE, "partial_rotary_factor": 0.5},
    "su": scaled({**LONGROPE, "rope_type": "su"}),
    "proportional": scaled(
        {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}
    ),
}

# A second family: libraries may read the same settings by family.
OF_MISTRAL = {name: {**config, **MISTRAL} for name, config in CASES.items()}
