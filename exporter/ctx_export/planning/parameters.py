"""How many numbers a decoder's weights are, counted from config.json by formula.

A layer: hidden·(heads + 2·KV heads)·head_dim + heads·head_dim·hidden for the attention, 3·hidden·
width for a gated MLP or 2·hidden·width for a plain one, the same for every expert plus the router,
and the biases and norms that the family has. Around them: vocabulary·hidden for the embeddings,
once more for the output projection unless both are one tensor, and the last norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import ModelSpec
from ctx_export.planning.families import Config, Experts, Family, NormOf, family_of, is_on


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Counts of a decoder's numbers. `matrices` are the layers' weight matrices, which every token
    is multiplied by: all experts among them, `active_matrices` the chosen experts only."""

    total: int
    embedding: int  # vocabulary · hidden
    output: int  # of the output projection's matrix, also where it is the embeddings'
    tied: bool
    matrices: int
    active_matrices: int
    widest: int  # numbers of one token that are there at once within a layer
    exact: bool  # False: a family or key that the formula guesses at

    @property
    def has_experts(self) -> bool:
        return self.matrices != self.active_matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    matrices: int
    active: int
    others: int  # biases, norms
    widest: int


def count_parameters(config: Config, spec: ModelSpec) -> Parameters:
    """The counts for a decoder of that config.json; raises UserError for a key of its experts that
    is missing."""
    family = family_of(config)
    kinds: dict[bool, _Layer] = {}
    layers = []
    for layer in range(spec.layers):
        sparse = _is_sparse(family.experts, config, layer)
        if sparse not in kinds:
            kinds[sparse] = _layer(family, config, spec, sparse=sparse)
        layers.append(kinds[sparse])
    stated = config.get("tie_word_embeddings")
    tied = family.tied if stated is None else bool(stated)
    embedding = spec.vocab * spec.hidden
    around = embedding + (0 if tied else embedding)
    around += spec.vocab if family.output_bias else 0
    around += spec.hidden * (1 + family.norm_bias) if family.final_norm else 0
    dense = any(not sparse for sparse in kinds)
    return Parameters(
        total=around + sum(layer.matrices + layer.others for layer in layers),
        embedding=embedding,
        output=embedding,
        tied=tied,
        matrices=sum(layer.matrices for layer in layers),
        active_matrices=sum(layer.active for layer in layers),
        widest=max(layer.widest for layer in layers),
        exact=family.exact and (not dense or _width(family, config, spec)[1]),
    )


def _layer(family: Family, config: Config, spec: ModelSpec, *, sparse: bool) -> _Layer:
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    attention = spec.hidden * (queries + 2 * keys) + queries * spec.hidden
    others = (queries + 2 * keys) * is_on(family.qkv_bias, config)
    others += spec.hidden * is_on(family.out_bias, config)
    norms = family.norms if isinstance(family.norms, int) else family.norms(config)
    others += norms * spec.hidden * (1 + family.norm_bias)
    others += _query_key_norms(family, config, spec)
    others += family.per_head * spec.heads + family.per_layer
    # The stream, its norm, and what an attention reads and writes; or an MLP.
    widest = 2 * spec.hidden + 2 * (queries + keys)
    if sparse:
        assert family.experts is not None
        mixture = _mixture(family.experts, config, spec)
        return _Layer(
            matrices=attention + mixture.matrices,
            active=attention + mixture.active,
            others=others + mixture.others,
            widest=max(widest, mixture.widest),
        )
    width, _ = _width(family, config, spec)
    inward = 2 if family.gated else 1
    others += (inward * width + spec.hidden) * is_on(family.mlp_bias, config)
    matrices = attention + (inward + 1) * spec.hidden * width
    return _Layer(
        matrices=matrices,
        active=matrices,
        others=others,
        widest=max(widest, 2 * spec.hidden + (inward + 1) * width),
    )


def _query_key_norms(family: Family, config: Config, spec: ModelSpec) -> int:
    norm = family.query_key_norm
    if norm is None or not is_on(norm.present, config):
        return 0
    heads = 2 if norm.of is NormOf.HEAD else spec.heads + spec.kv_heads
    return heads * spec.head_dim * (1 + norm.bias)


def _mixture(experts: Experts, config: Config, spec: ModelSpec) -> _Layer:
    """The experts of one layer, their router and the expert that all tokens take."""
    count, width = _needed(config, experts.count), _needed(config, experts.width)
    chosen = _needed(config, "num_experts_per_tok")
    one = 3 * spec.hidden * width
    shared = experts.shared(config)
    everywhere = count * spec.hidden + 3 * spec.hidden * shared
    everywhere += spec.hidden * experts.shared_gate
    biases = count * (2 * width + spec.hidden + 1) if experts.bias else 0
    return _Layer(
        matrices=everywhere + count * one,
        active=everywhere + min(chosen, count) * one,
        others=biases,
        # Every expert computes every token: gate, up and their product, and what comes out.
        widest=2 * spec.hidden + count * (3 * width + spec.hidden) + 3 * shared,
    )


def _is_sparse(experts: Experts | None, config: Config, layer: int) -> bool:
    if experts is None or not config.get(experts.count):
        return False
    return experts.sparse(config, layer)


def _width(family: Family, config: Config, spec: ModelSpec) -> tuple[int, bool]:
    """Width of the MLP, and whether it is known: gptj and falcon take four times the hidden size
    where config.json does not say, and so do estimates."""
    stated = config.get(family.width)
    if stated is None:
        return 4 * spec.hidden, family.width != "intermediate_size"
    return _needed(config, family.width), True


def _needed(config: Config, key: str) -> int:
    value: Any = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"config.json has {key} = {value!r}: the size of the weights needs a number ≥ 1 there"
        )
    return value
