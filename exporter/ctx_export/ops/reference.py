"""Float64 numpy reference of the `ctx` operators, written pair by pair from the specification.

It shares no code with the function bodies or the kernels and favours plainness over speed: every
(query, key) pair is decided by the visibility rule, and the cache is followed slot by slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ctx_export.ops.spec import Layout, Rotation

Array = NDArray[np.float64]


def rotate(
    x: Array,
    positions: NDArray[np.int64],
    inv_freq: Array,
    multiplier: Array,
    *,
    rotary_dim: int,
    interleaved: bool,
) -> Array:
    """Rotary embedding (arXiv 2104.09864) of `x` [B,H,S,D] at `positions` [B,S].

    `inv_freq` [1|B,F] in radians per token with F = rotary_dim / 2, `multiplier` [1|B] scales cos
    and sin. Pairs are (i, i + F) or, interleaved, (2i, 2i + 1); dims ≥ rotary_dim pass through.
    """
    half = rotary_dim // 2
    angle = positions.astype(np.float64)[..., None] * np.asarray(inv_freq, np.float64)[:, None, :]
    scale = np.asarray(multiplier, np.float64)[:, None, None]
    cos, sin = (np.cos(angle) * scale)[:, None], (np.sin(angle) * scale)[:, None]
    y = np.array(x, np.float64)
    first, second = (
        (slice(0, rotary_dim, 2), slice(1, rotary_dim, 2))
        if interleaved
        else (slice(0, half), slice(half, rotary_dim))
    )
    a, b = x[..., first].astype(np.float64), x[..., second].astype(np.float64)
    y[..., first] = a * cos - b * sin
    y[..., second] = b * cos + a * sin
    return y


def rotary_frequencies(
    rope_length: NDArray[np.int64], tables: NDArray[np.float32], scalars: NDArray[np.float32]
) -> tuple[Array, Array]:
    """(inv_freq [B,F], multiplier [B]) at `rope_length` [B]; see `ops.spec` for the rows.

    `tables` [4,2,F] and `scalars` [7,2] hold every number as high and low part.
    """
    batch, pairs = len(rope_length), tables.shape[2]
    inv_freq, multiplier = np.empty((batch, pairs)), np.empty(batch)
    numbers = [float(high) + float(low) for high, low in scalars]
    threshold, slope, offset, short_multiplier, long_multiplier, gain, gain_all = numbers
    for b in range(batch):
        length = int(rope_length[b])
        growth = slope * length + offset
        if growth < 1:
            growth = 1.0
        for i in range(pairs):
            short, long, ramp, exponent = (
                float(tables[row, 0, i]) + float(tables[row, 1, i]) for row in range(4)
            )
            kept = (1 - ramp) + ramp / growth
            frequency = long if length > threshold else short
            inv_freq[b, i] = frequency * kept * growth**exponent
        log = np.log(growth)
        chosen = long_multiplier if length > threshold else short_multiplier
        multiplier[b] = chosen * (1 + gain * log) / (1 + gain_all * log)
    return inv_freq, multiplier


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """Inputs and attributes of one SinkWindowAttention call; see `ops.spec` for the shapes."""

    q: Array
    k: Array
    v: Array
    past_key: Array
    past_value: Array
    seen: NDArray[np.int64]
    new: NDArray[np.int64]
    sinks: int = 0
    window: int = 0
    scale: float = 1.0
    softcap: float = 0.0
    bounded: bool = False
    sink_q: Array | None = None
    inv_freq: Array | None = None
    multiplier: Array | None = None
    head_sink: Array | None = None
    rotary_dim: int = 0
    interleaved: bool = False
    rotation: Rotation = Rotation.KEYS_ON_READ
    sink_position: int = 0
    layout: Layout = Layout.HEAD_MAJOR  # of q, k, v and y
    cache_type: str = ""  # "", float8e4m3fn or int8: past and present then hold its numbers
    key_scale: Array | None = None  # [Hkv], with a cache_type only
    value_scale: Array | None = None


Case = TypeVar("Case", bound=AttentionCase)


def quantised(x: Array, cache_type: str) -> Array:
    """`x` rounded to the numbers of a cache's type, to nearest with ties to even, saturated."""
    if cache_type == "int8":
        return np.asarray(np.clip(np.rint(x), -127, 127))
    if cache_type != "float8e4m3fn":
        raise ValueError(f"cache type {cache_type!r} is unknown: give float8e4m3fn or int8")
    # Four significant bits down to 2^-6; below it steps of 2^-9; the largest number is 1.75 * 2^8.
    _, exponent = np.frexp(x)  # x = m * 2^exponent, 0.5 <= |m| < 1
    step = np.exp2(np.maximum(exponent - 1, -6) - 3.0)
    return np.asarray(np.clip(np.rint(x / step) * step, -448, 448))


def slot_of(token: int, *, sinks: int, capacity: int, bounded: bool) -> int:
    """Cache slot of token `token`: itself in a full cache, sinks then a ring in a bounded one."""
    if not bounded or token < sinks:
        return token
    return sinks + (token - sinks) % (capacity - sinks)


def visible(query: int, key: int, *, sinks: int, window: int) -> bool:
    """Whether the token at position `query` sees the one at `key`; window 0 is unlimited."""
    return key <= query and (window == 0 or key < sinks or query - key < window)


def sink_window_attention(case: AttentionCase) -> tuple[Array, Array, Array]:
    """(y as q lies, present_key, present_value [B,Hkv,C,D]) of one call: write, then read.

    Rows ≥ new are not written and give 0; a row whose slot would be ≥ C gives NaN.
    """
    if case.layout != Layout.HEAD_MAJOR:
        y, *presents = sink_window_attention(by_head(case))
        return by_token(y), presents[0], presents[1]
    case = _rotated_rows(case)
    batch, query_heads, rows, _ = case.q.shape
    kv_heads, capacity = case.past_key.shape[1], case.past_key.shape[2]
    present_key = np.array(case.past_key, np.float64)
    present_value = np.array(case.past_value, np.float64)
    y = np.zeros(case.q.shape, np.float64)
    layout = {"sinks": case.sinks, "capacity": capacity, "bounded": case.bounded}
    for b in range(batch):
        seen, new = int(case.seen[b]), int(case.new[b])
        for row in range(min(new, rows)):
            slot = slot_of(seen + row, **layout)
            if slot < capacity:
                present_key[b, :, slot] = _stored(case, case.k[b, :, row], case.key_scale)
                present_value[b, :, slot] = _stored(case, case.v[b, :, row], case.value_scale)
        # Oldest first, so that a slot ends up owned by the newest token written to it.
        owner = {slot_of(t, **layout): t for t in range(seen + new)}
        tokens = sorted((t, s) for s, t in owner.items() if s < capacity)
        for row in range(min(new, rows)):
            position = seen + row
            if slot_of(position, **layout) >= capacity:
                y[b, :, row] = np.nan
                continue
            seen_pairs = [
                (t, s)
                for t, s in tokens
                if visible(position, t, sinks=case.sinks, window=case.window)
            ]
            for head in range(query_heads):
                kv_head = head // (query_heads // kv_heads)
                y[b, head, row] = _attend(
                    case,
                    b,
                    head,
                    row,
                    seen_pairs,
                    _read(present_key[b, kv_head], case.key_scale, kv_head),
                    _read(present_value[b, kv_head], case.value_scale, kv_head),
                )
    return y, present_key, present_value


def by_token(y: Array) -> Array:
    """[batch, head, token, dim] as [batch, token, head · dim]."""
    return y.swapaxes(1, 2).reshape(len(y), y.shape[2], -1)


def by_head(case: Case) -> Case:
    """The call with q, k and v as [batch, head, token, dim]."""
    if case.layout == Layout.HEAD_MAJOR:
        return case
    _, kv_heads, _, dim = case.past_key.shape
    q, k, v = (x.reshape(*x.shape[:2], -1, dim) for x in (case.q, case.k, case.v))
    if case.layout == Layout.PACKED:
        heads = q.shape[2] - 2 * kv_heads
        q, k, v = q[:, :, :heads], k[:, :, heads : heads + kv_heads], v[:, :, heads + kv_heads :]
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return replace(case, q=q, k=k, v=v, layout=Layout.HEAD_MAJOR)


def _rotated_rows(case: AttentionCase) -> AttentionCase:
    """The call with its q, k and second q as they are used and cached."""
    if case.rotation == Rotation.KEYS_ON_READ:
        return case
    positions = case.seen[:, None] + np.arange(case.q.shape[2])

    def at(x: Array, where: NDArray[np.int64]) -> Array:
        assert case.inv_freq is not None and case.multiplier is not None
        return rotate(
            x,
            where,
            case.inv_freq,
            case.multiplier,
            rotary_dim=case.rotary_dim,
            interleaved=case.interleaved,
        )

    on_write = case.rotation == Rotation.ON_WRITE
    position = case.sink_position
    return replace(
        case,
        q=at(case.q, positions),
        k=at(case.k, positions) if on_write else case.k,
        sink_q=at(case.q, np.minimum(positions, position)) if position else None,
        rotary_dim=0 if on_write else case.rotary_dim,
    )


def _stored(case: AttentionCase, rows: Array, scale: Array | None) -> Array:
    """What a cache keeps of one token's rows [Hkv,D]."""
    if scale is None:
        return rows
    return quantised(rows.astype(np.float64) / scale[:, None], case.cache_type)


def _read(elements: Array, scale: Array | None, head: int) -> Array:
    """One head's elements [C,D] as keys or values."""
    return elements if scale is None else elements * float(scale[head])


def _attend(
    case: AttentionCase,
    b: int,
    head: int,
    row: int,
    pairs: list[tuple[int, int]],
    keys: Array,
    values: Array,
) -> Array:
    """One query's softmax over its visible (token, slot) pairs; keys and values are [C,D]."""
    logits = np.empty(len(pairs))
    for n, (token, slot) in enumerate(pairs):
        key = keys[slot]
        if case.rotary_dim:
            assert case.inv_freq is not None and case.multiplier is not None
            table = min(b, len(case.inv_freq) - 1)
            key = rotate(
                key[None, None, None],
                np.array([[token]]),
                case.inv_freq[table : table + 1],
                case.multiplier[table : table + 1],
                rotary_dim=case.rotary_dim,
                interleaved=case.interleaved,
            )[0, 0, 0]
        source = case.sink_q if case.sink_q is not None and token < case.sinks else case.q
        logits[n] = float(source[b, head, row].astype(np.float64) @ key) * case.scale
    if case.softcap:
        logits = case.softcap * np.tanh(logits / case.softcap)
    top = logits.max()
    if case.head_sink is not None:
        top = max(top, float(case.head_sink[head]))
    weights = np.exp(logits - top)
    total = weights.sum()
    if case.head_sink is not None:
        total += np.exp(float(case.head_sink[head]) - top)
    slots = [slot for _, slot in pairs]
    result: Array = (weights / total) @ values[slots]
    return result
