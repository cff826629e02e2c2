"""The `ctx` operators, version 1: names, inputs in order, outputs and attributes.

One table serves the graph passes (which write nodes), the function bodies, the schema test and the
plugins' field tables; DESIGN.md describes the semantics. Layouts are [batch, head, token, dim]
unless `layout` says otherwise: B batch, S new tokens of a call (right-padded), C cache slots,
D head dimension, F rotated pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

DOMAIN = "ctx"
OPSET_VERSION = 1
# TensorRT's ONNX parser finds the plugin by these two node attributes.
PLUGIN_ATTRIBUTES: dict[str, str] = {"plugin_version": "1", "plugin_namespace": ""}


class Rotation(IntEnum):
    """What SinkWindowAttention rotates itself, where its rotary_dim is above 0."""

    KEYS_ON_READ = 0  # q as given; keys are cached unrotated and rotated when they are read
    ON_WRITE = 1  # q, and k before it is cached: both are given unrotated
    QUERY_AND_KEYS_ON_READ = 2  # q, given unrotated, and cached keys when they are read


class Layout(IntEnum):
    """How SinkWindowAttention's q, k, v and y lie; the sizes follow from q's and past_key's."""

    HEAD_MAJOR = 0  # q and y [B,Hq,S,D], k and v [B,Hkv,S,D]
    TOKEN_MAJOR = 1  # as projections write them: q and y [B,S,Hq·D], k and v [B,S,Hkv·D]
    PACKED = 2  # y [B,S,Hq·D]; q, k and v one value [B,S,(Hq+2·Hkv)·D]: q's heads, k's, v's


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSpec:
    """Signature of one operator. `optional` inputs follow `inputs` in this order when present."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, type]
    optional: tuple[str, ...] = ()


SCALED_ROTARY_EMBEDDING = OperatorSpec(
    name="ScaledRotaryEmbedding",
    # x [B,H,S,D], positions [B,S] int64, inv_freq [1|B,F] float32, multiplier [1|B] float32
    inputs=("x", "positions", "inv_freq", "multiplier"),
    outputs=("y",),
    attributes={"rotary_dim": int, "interleaved": int},
)

ROTARY_FREQUENCIES = OperatorSpec(
    name="RotaryFrequencies",
    # rope_length [B] int64; tables [4,2,F] float32: short, long, ramp, exponent; scalars [7,2]
    # float32: threshold, slope, offset, short_multiplier, long_multiplier, gain, gain_all.
    # Each number is a float32 pair (high, low) whose sum keeps 48 bits, because TensorRT
    # turns float64 tensors into float32.
    inputs=("rope_length", "tables", "scalars"),
    # inv_freq [B,F] float32, radians per token; multiplier [B] float32
    outputs=("inv_freq", "multiplier"),
    attributes={},
)

SINK_WINDOW_ATTENTION = OperatorSpec(
    name="SinkWindowAttention",
    # q [B,Hq,S,D], k and v [B,Hkv,S,D], or as `layout` says; past_* [B,Hkv,C,D], seen and new [B]
    # int64; past_* and present_* have q's type, or with scales FLOAT8E4M3FN or INT8
    inputs=("q", "k", "v", "past_key", "past_value", "seen", "new"),
    # sink_q [B,Hq,S,D], with layout 0 only; inv_freq [1|B,F] and multiplier [1|B] float32;
    # head_sink [Hq] float32; key_scale and value_scale [Hkv] float32: what 1 in a quantised cache
    # means
    optional=("sink_q", "inv_freq", "multiplier", "head_sink", "key_scale", "value_scale"),
    outputs=("y", "present_key", "present_value"),
    attributes={
        "sinks": int,  # tokens 0 … sinks-1 are visible to every later query
        "window": int,  # tokens a query sees back, itself included; 0: unlimited
        "scale": float,  # factor on q·k
        "softcap": float,  # logits become softcap·tanh(logits / softcap); 0: none
        "alias": int,  # 1: present may share memory with past
        "bounded": int,  # 0: token t lives in slot t; 1: ring of C - sinks slots after the sinks
        "rotary_dim": int,  # leading dims that are rotated; 0: q and k are used as given
        "interleaved": int,
        "rotation": int,  # a Rotation: q and k of this call are at positions seen + row
        "sink_position": int,  # sinks meet q rotated at most here; 0: as other keys do
        "layout": int,  # a Layout, of q, k, v and y
        "optional_inputs": str,  # comma-separated names of the optional inputs present, in order
    },
)

# What the operators below share. q and k are given unrotated and cached unrotated; they rotate q
# and the keys that they read at the positions of their own rule. The first seven inputs and the
# outputs are SinkWindowAttention's.
_FAR_INPUTS = ("q", "k", "v", "past_key", "past_value", "seen", "new")
# inv_freq [1|B,F] and multiplier [1|B] float32, absent with rotary_dim 0; head_sink [Hq] float32
_FAR_OPTIONAL = ("inv_freq", "multiplier", "head_sink")
_FAR_OUTPUTS = ("y", "present_key", "present_value")
_FAR_ATTRIBUTES: dict[str, type] = {
    "scale": float,
    "softcap": float,
    "alias": int,
    "rotary_dim": int,
    "interleaved": int,
    "layout": int,
    "optional_inputs": str,
}

SELF_EXTEND_ATTENTION = OperatorSpec(
    name="SelfExtendAttention",  # token t in slot t
    inputs=_FAR_INPUTS,
    optional=_FAR_OPTIONAL,
    outputs=_FAR_OUTPUTS,
    attributes={
        "group": int,  # tokens that share a position, neighbor apart; it divides neighbor
        "neighbor": int,  # distances below it are met at the tokens' own positions
        **_FAR_ATTRIBUTES,
    },
)

DUAL_CHUNK_ATTENTION = OperatorSpec(
    name="DualChunkAttention",  # token t in slot t
    inputs=_FAR_INPUTS,
    optional=_FAR_OPTIONAL,
    outputs=_FAR_OUTPUTS,
    attributes={
        "chunk": int,  # tokens whose positions count up; key t is at t mod chunk
        "reach": int,  # positions stay below it, reach ≥ chunk
        **_FAR_ATTRIBUTES,
    },
)

MEMORY_ATTENTION = OperatorSpec(
    # Slots: sinks, then memory_slots means of evicted blocks (block m in slot
    # sinks + m mod memory_slots), then a ring of the tokens after the sinks.
    name="MemoryAttention",
    inputs=_FAR_INPUTS,
    optional=_FAR_OPTIONAL,
    outputs=_FAR_OUTPUTS,
    attributes={
        "sinks": int,  # first tokens, seen by all
        "window": int,  # newest tokens that stay tokens, the query included, ≥ 1
        "memory": int,  # newest evicted blocks that a query sees, ≥ 1
        "block": int,  # tokens whose keys and values are averaged, ≥ 1
        "memory_slots": int,  # ≥ memory + ⌈(rows of a call) / block⌉
        **_FAR_ATTRIBUTES,
    },
)

LANDMARK_ATTENTION = OperatorSpec(
    # Slots: the sinks, then per block its tokens and, with landmark 0, the mean of its keys;
    # token t ≥ sinks, the o-th of block m, is in slot sinks + m·(block + 1) + o, the mean in
    # sinks + m·(block + 1) + block (its value is 0). With landmark 1 token t is in slot t.
    name="LandmarkAttention",
    inputs=_FAR_INPUTS,
    optional=_FAR_OPTIONAL,
    outputs=_FAR_OUTPUTS,
    attributes={
        "sinks": int,  # first tokens, seen by all
        "window": int,  # newest tokens whose blocks are no candidates, ≥ 1
        "block": int,  # tokens that are chosen together; ≥ 2 with landmark 1
        "topk": int,  # blocks chosen per query, ≥ 1
        "shared": int,  # 1: one choice per KV head, by the sum of its query heads' scores
        "landmark": int,  # 1: a block's last token represents it, with the grouped softmax
        **_FAR_ATTRIBUTES,
    },
)

OPERATORS: dict[str, OperatorSpec] = {
    spec.name: spec
    for spec in (
        SCALED_ROTARY_EMBEDDING,
        ROTARY_FREQUENCIES,
        SINK_WINDOW_ATTENTION,
        SELF_EXTEND_ATTENTION,
        DUAL_CHUNK_ATTENTION,
        MEMORY_ATTENTION,
        LANDMARK_ATTENTION,
    )
}
