"""SinkWindowAttention in PyTorch at the tensors' own precision: what that precision costs anyone.

Eager attention over the tokens in the cache: every product, the softmax and the weighted sum round
to the dtype. Queries and keys that the call rotates are rotated in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctx_export.ops.reference import AttentionCase, rotate, slot_of, visible
from ctx_export.ops.spec import Rotation

Array = NDArray[np.float64]


def attention(case: AttentionCase, present_key: Array, present_value: Array, dtype: str) -> Array:
    """y [B,Hq,S,D] of the rows that attend, zeros elsewhere; caches as after the call's write."""
    y = np.zeros(case.q.shape)
    groups = case.q.shape[1] // present_key.shape[1]
    for b, (seen, new) in enumerate(zip(case.seen.tolist(), case.new.tolist(), strict=True)):
        kept = _kept(case, seen + new)
        rows = [r for r in range(new) if case.bounded or seen + r < present_key.shape[2]]
        if not rows or not kept:
            continue
        tokens, slots = (np.array(list(part), np.int64) for part in (kept.keys(), kept.values()))
        limits = {"sinks": case.sinks, "window": case.window}
        seen_by = np.array([[visible(seen + r, int(t), **limits) for t in tokens] for r in rows])
        for head in range(case.q.shape[1]):
            key = present_key[b, head // groups, slots]
            if case.rotary_dim and case.rotation != Rotation.ON_WRITE:
                key = _turned(case, key, tokens, b)
            value = present_value[b, head // groups, slots]
            queries = _queries(case, b, head, rows)
            sink = None if case.head_sink is None else case.head_sink[head]
            weights = _weights(case, queries, key, tokens < case.sinks, seen_by, sink, dtype)
            y[b, head, rows] = (weights @ _tensor(value, dtype)).double().numpy()
    return y


def _weights(
    case: AttentionCase,
    queries: list[Array],
    key: Array,
    is_sink: NDArray[np.bool_],
    seen_by: NDArray[np.bool_],
    head_sink: Any,
    dtype: str,
) -> torch.Tensor:
    """Softmax of the rows over the tokens, in the dtype."""
    keys = _tensor(key, dtype).T
    scores = _tensor(queries[0], dtype) @ keys
    if len(queries) > 1:
        met_by_sink_query = torch.from_numpy(is_sink)
        scores = torch.where(met_by_sink_query, _tensor(queries[1], dtype) @ keys, scores)
    logits = scores * case.scale
    if case.softcap:
        logits = torch.tanh(logits / case.softcap) * case.softcap
    logits = logits.masked_fill(~torch.from_numpy(seen_by), -torch.inf)
    if head_sink is not None:
        column = torch.full((len(logits), 1), float(head_sink), dtype=logits.dtype)
        return torch.cat([logits, column], dim=1).softmax(-1)[:, :-1]
    return logits.softmax(-1)


def _kept(case: AttentionCase, end: int) -> dict[int, int]:
    """Token → slot, by token, of what the cache holds once `end` tokens were written."""
    capacity = case.past_key.shape[2]
    layout = {"sinks": case.sinks, "capacity": capacity, "bounded": case.bounded}
    owner = {slot_of(token, **layout): token for token in range(end)}
    return {t: slot for t, slot in sorted((t, s) for s, t in owner.items()) if slot < capacity}


def _queries(case: AttentionCase, b: int, head: int, rows: list[int]) -> list[Array]:
    """The rows' queries [R,D] and, where they differ, those that meet the sinks."""
    given = case.q[b, head, rows]
    if case.rotation == Rotation.KEYS_ON_READ:
        return [given] if case.sink_q is None else [given, case.sink_q[b, head, rows]]
    positions = case.seen[b] + np.array(rows)
    queries = [_turned(case, given, positions, b)]
    if case.sink_position:
        queries.append(_turned(case, given, np.minimum(positions, case.sink_position), b))
    return queries


def _turned(case: AttentionCase, x: Array, positions: NDArray[np.int64], b: int) -> Array:
    """Queries or keys [N,D] at their positions."""
    assert case.inv_freq is not None and case.multiplier is not None
    table = slice(min(b, len(case.inv_freq) - 1), None)
    turned = rotate(
        x[None, None],
        positions[None],
        case.inv_freq[table][:1],
        case.multiplier[table][:1],
        rotary_dim=case.rotary_dim,
        interleaved=case.interleaved,
    )
    return np.asarray(turned[0, 0])


def _tensor(values: Array, dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float64)).to(getattr(torch, dtype))
