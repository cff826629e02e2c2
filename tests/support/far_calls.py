"""Calls of the attentions that look behind a window: rules, caches, and feeding by chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.rules import Landmark, Memory
from ctx_export.ops import reference_far as far
from ctx_export.ops.reference_far import FarCase

Array = NDArray[Any]
Step = Callable[[FarCase], Sequence[Array]]  # a call's y, present_key and present_value


@dataclass(frozen=True, kw_only=True)
class FarRule:
    """A rule with its numbers; `name` is that of its reference and its body."""

    name: str
    numbers: dict[str, int]
    near: dict[str, int] = field(default_factory=dict)  # sinks and window
    rows: int = 7  # the most that a call feeds

    def __str__(self) -> str:
        return "-".join(
            [self.name, *(f"{k}{v}" for k, v in {**self.near, **self.numbers}.items())]
        )

    @property
    def reference(self) -> Step:
        step: Step = getattr(far, f"{self.name}_attention")
        return step

    @property
    def case(self) -> type[FarCase]:
        return {
            "self_extend": far.SelfExtendCase,
            "dual_chunk": far.DualChunkCase,
            "memory": far.MemoryCase,
            "landmark": far.LandmarkCase,
        }[self.name]

    def capacity(self, tokens: int) -> int:
        """Slots for sequences of `tokens` tokens."""
        numbers = self.numbers
        if self.name == "memory":
            rule = Memory(**numbers)
            return rule.capacity(self.near["sinks"], self.near["window"], self.rows)
        if self.name == "landmark":
            token = 0 if numbers.get("landmark") else None
            block, topk = numbers["block"], numbers["topk"]
            rule = Landmark(block=block, topk=topk, shared=False, token=token)
            return rule.slots(self.near["sinks"], tokens)
        return tokens


def self_extend(group: int, neighbor: int) -> FarRule:
    return FarRule(name="self_extend", numbers={"group": group, "neighbor": neighbor})


def dual_chunk(chunk: int, reach: int) -> FarRule:
    return FarRule(name="dual_chunk", numbers={"chunk": chunk, "reach": reach})


def memory(sinks: int, window: int, block: int, tokens: int, rows: int = 7) -> FarRule:
    slots = tokens + -(-rows // block)
    numbers = {"memory": tokens, "block": block, "memory_slots": slots}
    return FarRule(
        name="memory", numbers=numbers, near={"sinks": sinks, "window": window}, rows=rows
    )


def landmark(
    sinks: int, window: int, block: int, topk: int, *, shared: int = 0, landmark: int = 0
) -> FarRule:
    numbers = {"block": block, "topk": topk, "shared": shared, "landmark": landmark}
    return FarRule(name="landmark", numbers=numbers, near={"sinks": sinks, "window": window})


def make_text(rule: FarRule, lengths: Sequence[int], **choice: Any) -> FarCase:
    """Whole sequences of `lengths` tokens as one call over an empty cache. `choice`: seed, dtype,
    dim, heads (of q and of k), and fields of the case."""
    rng = np.random.default_rng(choice.pop("seed", 0))
    dtype = choice.pop("dtype", np.float64)
    dim, (heads, kv_heads) = choice.pop("dim", 16), choice.pop("heads", (4, 2))
    batch, tokens = len(lengths), max(lengths)

    def normal(*size: int) -> Array:
        return rng.standard_normal(size).astype(dtype)

    rotary_dim = choice.setdefault("rotary_dim", dim)
    if rotary_dim:
        choice["inv_freq"] = rng.uniform(0, 1, (batch, rotary_dim // 2)).astype(np.float32)
        choice["multiplier"] = rng.uniform(0.8, 1.2, batch).astype(np.float32)
    capacity = rule.capacity(tokens)
    return rule.case(
        q=normal(batch, heads, tokens, dim),
        k=normal(batch, kv_heads, tokens, dim),
        v=normal(batch, kv_heads, tokens, dim),
        past_key=normal(batch, kv_heads, capacity, dim),
        past_value=normal(batch, kv_heads, capacity, dim),
        seen=np.zeros(batch, np.int64),
        new=np.array(lengths),
        element=dtype,
        **{"scale": 0.3, **rule.near, **rule.numbers, **choice},
    )


def calls(rule: FarRule, lengths: Sequence[int], seed: int = 0) -> list[Array]:
    """How many tokens of every sequence each call feeds: all of 0 … rule.rows, ragged."""
    rng, left = np.random.default_rng(seed), np.array(lengths)
    fed = []
    while left.any():
        fed.append(np.minimum(rng.integers(0, rule.rows + 1, len(left)), left))
        left = left - fed[-1]
    return fed


def feed(step: Step, text: FarCase, chunks: Sequence[Array], rows: int) -> tuple[Array, FarCase]:
    """y of a text [B,Hq,N,D] fed by chunks in calls of `rows` rows, and the last call with the
    caches that it leaves. Rows that are no tokens hold the tokens that follow."""
    y = np.full(text.q.shape, np.nan)
    call, seen = text, np.zeros(len(text.seen), np.int64)
    for new in chunks:
        at = np.minimum(seen[:, None] + np.arange(rows), text.q.shape[2] - 1)[:, None, :, None]
        given = {name: np.take_along_axis(getattr(text, name), at, axis=2) for name in "qkv"}
        call = replace(call, **given, seen=seen, new=new)
        out, key, value = step(call)
        for b, count in enumerate(new.tolist()):
            y[b, :, seen[b] : seen[b] + count] = out[b, :, :count]
            assert not np.any(out[b, :, count:])
        call = replace(call, past_key=key, past_value=value)
        seen = seen + new
    return y, call
