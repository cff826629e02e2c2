"""What decoder families' tensors are, beyond what config.json says: biases, norms, gates, experts.

Each entry is read from that family's modelling code in transformers 5. A family that is not here
is taken for one like llama, and its counts are estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

Config = Mapping[str, Any]
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A setting that config.json may state, and what the family takes for granted if not."""

    name: str
    default: bool = False

    def on(self, config: Config) -> bool:
        stated = config.get(self.name)
        return self.default if stated is None else bool(stated)


Switch = bool | Key


def is_on(switch: Switch, config: Config) -> bool:
    """Whether a decoder of `config` has what `switch` stands for."""
    return switch.on(config) if isinstance(switch, Key) else switch


class NormOf(Enum):
    """What a norm of queries and keys has a number for."""

    HEAD = "head_dim numbers that all heads share"
    HEADS = "head_dim numbers for every head"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryKeyNorm:
    """Norms of queries and of keys in every layer."""

    of: NormOf
    present: Switch = True
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of gated experts in place of the MLP, in layers that `sparse` names."""

    count: str  # config.json's key
    width: str
    bias: bool = False  # of every expert, and of the router
    shared: Callable[[Config], int] = lambda config: 0  # width of the expert that all tokens take
    shared_gate: bool = False
    sparse: Callable[[Config, int], bool] = lambda config, layer: True


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A decoder layer's tensors and those around the layers."""

    exact: bool = True
    qkv_bias: Switch = False
    out_bias: Switch = False
    gated: bool = True  # the MLP has two projections to its width
    width: str = "intermediate_size"
    mlp_bias: Switch = False
    norms: int | Callable[[Config], int] = 2  # of the hidden size, in every layer
    norm_bias: bool = False
    final_norm: bool = True
    query_key_norm: QueryKeyNorm | None = None
    experts: Experts | None = None
    per_head: int = 0  # further numbers of every query head
    per_layer: int = 0  # and of every layer
    tied: bool = False  # where config.json does not say
    output_bias: bool = False


def family_of(config: Config) -> Family:
    """The family of a config.json, by its model_type."""
    known = FAMILIES.get(str(config.get("model_type")))
    if known is not None:
        return known
    count = next((name for name in _EXPERT_COUNTS if config.get(name)), None)
    width = "moe_intermediate_size" if config.get("moe_intermediate_size") else "intermediate_size"
    experts = None if count is None else Experts(count=count, width=width)
    return replace(_LLAMA, exact=False, experts=experts)


def _sparse_steps(config: Config, layer: int) -> bool:
    """qwen: which layers have experts."""
    step = config.get("decoder_sparse_step") or 1
    return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % step == 0


def _after_dense(config: Config, layer: int) -> bool:
    first = config.get("first_k_dense_replace")
    return layer >= (1 if first is None else first)


def _shared_of_qwen2(config: Config) -> int:
    return int(config.get("shared_expert_intermediate_size") or 5632)


def _shared_of_glm4(config: Config) -> int:
    shared = config.get("n_shared_experts")
    return int(config["moe_intermediate_size"]) * (1 if shared is None else int(shared))


def _norms_of_falcon(config: Config) -> int:
    if not Key(name="parallel_attn", default=True).on(config):
        return 2
    stated = config.get("num_ln_in_parallel_attn")
    if stated is None:
        stated = 2 if config.get("new_decoder_architecture") else 1
    return 2 if stated == 2 else 1


_BIAS, _MLP_BIAS = Key(name="attention_bias"), Key(name="mlp_bias")
_HEAD_NORM = QueryKeyNorm(of=NormOf.HEAD)
_HEADS_NORM = QueryKeyNorm(of=NormOf.HEADS)
_LLAMA = Family(qkv_bias=_BIAS, out_bias=_BIAS, mlp_bias=_MLP_BIAS)
_PLAIN = Family()  # no biases, whatever config.json says
_BIASED = Family(qkv_bias=_BIAS, out_bias=_BIAS)  # but of the MLP
_GEMMA = replace(_BIASED, tied=True)
_COHERE = replace(_BIASED, norms=1, tied=True)
_LAYER_NORMS = Family(gated=False, norm_bias=True, mlp_bias=True)  # the older, plain MLPs
_USE_BIAS = Key(name="use_bias", default=True)
_FALCON_BIAS = Key(name="bias")

FAMILIES: dict[str, Family] = {
    "apertus": replace(_BIASED, gated=False, query_key_norm=_HEAD_NORM, per_layer=2),
    "cohere": replace(
        _COHERE, query_key_norm=QueryKeyNorm(of=NormOf.HEADS, present=Key(name="use_qk_norm"))
    ),
    "cohere2": _COHERE,
    "exaone4": replace(_PLAIN, query_key_norm=_HEAD_NORM),
    "falcon": Family(
        gated=False,
        width="ffn_hidden_size",
        qkv_bias=_FALCON_BIAS,
        out_bias=_FALCON_BIAS,
        mlp_bias=_FALCON_BIAS,
        norms=_norms_of_falcon,
        norm_bias=True,
        tied=True,
    ),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms=4),
    "gemma3_text": replace(_GEMMA, norms=4, query_key_norm=_HEAD_NORM),
    "glm4": Family(qkv_bias=Key(name="attention_bias", default=True), norms=4),
    "glm4_moe": Family(
        qkv_bias=_BIAS,
        query_key_norm=QueryKeyNorm(of=NormOf.HEAD, present=Key(name="use_qk_norm")),
        experts=Experts(
            count="n_routed_experts",
            width="moe_intermediate_size",
            shared=_shared_of_glm4,
            sparse=_after_dense,
        ),
    ),
    "gpt_neox": replace(
        _LAYER_NORMS,
        qkv_bias=Key(name="attention_bias", default=True),
        out_bias=Key(name="attention_bias", default=True),
    ),
    "gpt_oss": Family(
        qkv_bias=Key(name="attention_bias", default=True),
        out_bias=Key(name="attention_bias", default=True),
        experts=Experts(count="num_local_experts", width="intermediate_size", bias=True),
        per_head=1,  # learned logits in the softmax
    ),
    "gptj": replace(_LAYER_NORMS, width="n_inner", norms=1, output_bias=True),
    "granite": _LLAMA,
    "helium": Family(qkv_bias=_BIAS, mlp_bias=_MLP_BIAS),
    "llama": _LLAMA,
    "minimax_m2": Family(
        query_key_norm=_HEADS_NORM,
        experts=Experts(count="num_local_experts", width="intermediate_size"),
    ),
    "mistral": _PLAIN,
    "mixtral": Family(experts=Experts(count="num_local_experts", width="intermediate_size")),
    "nemotron": replace(_LLAMA, gated=False, norm_bias=True),
    "olmo": replace(_BIASED, norms=0, final_norm=False),  # norms without numbers
    "olmo2": replace(_BIASED, query_key_norm=_HEADS_NORM),
    "olmo3": replace(_BIASED, query_key_norm=_HEADS_NORM),
    "persimmon": replace(
        _LAYER_NORMS,
        qkv_bias=True,
        out_bias=True,
        query_key_norm=QueryKeyNorm(
            of=NormOf.HEAD, present=Key(name="qk_layernorm", default=True), bias=True
        ),
    ),
    "phi": replace(
        _LAYER_NORMS,
        qkv_bias=True,
        out_bias=True,
        norms=1,
        query_key_norm=QueryKeyNorm(of=NormOf.HEAD, present=Key(name="qk_layernorm"), bias=True),
        output_bias=True,
    ),
    "phi3": _PLAIN,
    "qwen2": Family(qkv_bias=True),
    "qwen2_moe": Family(
        qkv_bias=Key(name="qkv_bias", default=True),
        experts=Experts(
            count="num_experts",
            width="moe_intermediate_size",
            shared=_shared_of_qwen2,
            shared_gate=True,
            sparse=_sparse_steps,
        ),
    ),
    "qwen3": replace(_BIASED, query_key_norm=_HEAD_NORM),
    "qwen3_moe": replace(
        _BIASED,
        query_key_norm=_HEAD_NORM,
        experts=Experts(count="num_experts", width="moe_intermediate_size", sparse=_sparse_steps),
    ),
    "smollm3": replace(_LLAMA, tied=True),
    "stablelm": Family(
        qkv_bias=Key(name="use_qkv_bias"),
        norms=lambda config: 1 if config.get("use_parallel_residual") else 2,
        norm_bias=True,
        query_key_norm=QueryKeyNorm(of=NormOf.HEADS, present=Key(name="qk_layernorm")),
    ),
    "starcoder2": Family(
        gated=False,
        qkv_bias=_USE_BIAS,
        out_bias=_USE_BIAS,
        mlp_bias=_USE_BIAS,
        norm_bias=True,
        tied=True,
    ),
}
