"""Float64 numpy references of the attentions that look behind a window, written from FORMULAS
section 3: what a query meets is listed key by key, each at the positions that the rule names.

They share no arithmetic with the function bodies or the kernels. Every function takes one call and
returns (y as q lies, present_key, present_value [B,Hkv,C,D]): it writes first, then reads. Rows ≥
new are not written and give 0; a row whose slot would be ≥ C is not written and gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctx_export.ops.reference import Array, AttentionCase, by_head, by_token, rotate
from ctx_export.ops.spec import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class FarCase(AttentionCase):
    """A call of any of these operators. Averages are rounded to `element`, the type of the caches,
    where the arrays given are wider; None: theirs."""

    element: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfExtendCase(FarCase):
    group: int
    neighbor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DualChunkCase(FarCase):
    chunk: int
    reach: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCase(FarCase):
    memory: int
    block: int
    memory_slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkCase(FarCase):
    block: int
    topk: int
    shared: bool = False
    landmark: bool = False


class Met(NamedTuple):
    """A key as one query meets it."""

    query_position: int
    key_position: int
    slot: int


class Present(NamedTuple):
    """The caches after the call's rows are in them, [B,Hkv,C,D] float64."""

    key: Array
    value: Array


class Rule(NamedTuple):
    """Where a call's tokens are kept, and what its queries meet, the same in all heads."""

    slot: Callable[[int], int]
    met: Callable[[int], list[Met]]
    # What some slots are given besides, of a sequence's past [B,Hkv,C,D] and rows [B,Hkv,S,D].
    averaged: Callable[[int, Array, Array], dict[int, Array]] | None = None


Outputs = tuple[Array, Array, Array]


def self_extend_attention(case: SelfExtendCase) -> Outputs:
    return _outputs(case, self_extend_rule(case))


def dual_chunk_attention(case: DualChunkCase) -> Outputs:
    return _outputs(case, dual_chunk_rule(case))


def memory_attention(case: MemoryCase) -> Outputs:
    return _outputs(case, memory_rule(case))


def self_extend_rule(case: SelfExtendCase) -> Rule:
    """self-extend (arXiv 2401.01325): distances below `neighbor` normally, others by group."""
    near, group = case.neighbor, case.group

    def met(query: int) -> list[Met]:
        shifted = query // group + near - near // group
        return [
            Met(query, key, key) if query - key < near else Met(shifted, key // group, key)
            for key in range(query + 1)
        ]

    return Rule(lambda token: token, met)


def dual_chunk_rule(case: DualChunkCase) -> Rule:
    """dual-chunk (arXiv 2402.17463): the query's position by chunks between it and the key."""
    chunk, last = case.chunk, case.reach - 1

    def met(query: int) -> list[Met]:
        at = query % chunk
        positions = [at, min(at + chunk, last), last]
        behind = [min(query // chunk - key // chunk, 2) for key in range(query + 1)]
        return [Met(positions[back], key % chunk, key) for key, back in enumerate(behind)]

    return Rule(lambda token: token, met)


def memory_rule(case: MemoryCase) -> Rule:
    """memory: sinks, means of evicted blocks, then the tokens that are no part of a mean yet; each
    at its rank in that order. A call averages its blocks before its rows take their slots."""
    sinks, block, fixed = case.sinks, case.block, case.sinks + case.memory_slots
    ring = case.past_key.shape[2] - fixed

    def slot(token: int) -> int:
        return token if token < sinks else fixed + (token - sinks) % ring

    def slot_of_block(number: int) -> int:
        return sinks + number % case.memory_slots

    def evicted(query: int) -> int:
        return max(0, query + 1 - sinks - case.window) // block

    def met(query: int) -> list[Met]:
        blocks = evicted(query)
        slots = [slot(token) for token in range(min(sinks, query + 1))]
        slots += [slot_of_block(m) for m in range(max(0, blocks - case.memory), blocks)]
        slots += [slot(token) for token in range(sinks + blocks * block, query + 1)]
        return [Met(len(slots) - 1, rank, slot) for rank, slot in enumerate(slots)]

    def averaged(b: int, past: Array, rows: Array) -> dict[int, Array]:
        seen, total = int(case.seen[b]), int(case.seen[b] + case.new[b])
        means = {}
        for m in range(evicted(seen - 1), evicted(total - 1)):
            first = sinks + m * block
            tokens = [
                past[b, :, slot(t)] if t < seen else rows[b, :, t - seen]
                for t in range(first, first + block)
            ]
            means[slot_of_block(m)] = _mean(case, tokens)
        return means

    return Rule(slot, met, averaged)


def landmark_attention(case: LandmarkCase) -> Outputs:
    """landmark (arXiv 2305.16300): per query and head the `topk` blocks whose representatives
    match best, one softmax over the sinks, their tokens and the tokens after the candidates.

    With `landmark` the softmax is grouped as in section 3.2 of the paper. The query's own group is
    the sinks, the tokens of its own block and the landmarks of all other blocks that it reads:
    chosen ones and whole ones after the candidates alike. Of those blocks a token's weight is its
    share of its block's tokens times its landmark's share of the query's group. Landmarks have no
    weight themselves, and a landmark's query does not meet its own key.
    """
    if case.landmark and case.head_sink is not None:
        raise ValueError("landmark 1 and a head_sink: the grouped softmax has no learned sink")
    outer, case = case, by_head(case)
    present = _landmark_present(case)
    y = np.zeros(case.q.shape)
    for b, row, query in _queries(case):
        if _landmark_slot(case, query) >= case.past_key.shape[2]:
            y[b, :, row] = np.nan
            continue
        q, keys, values = _read(case, present, b, row)
        chosen, _ = _chosen(case, b, query, q, keys)
        for head, blocks in enumerate(chosen):
            tokens, met = _landmark_met(case, query, blocks)
            logits = _capped(case, _logits(case, b, met, q[[head]], keys[[head]]))[0]
            if case.landmark:
                weights = _grouped(case, query, tokens, logits)
            else:
                weights = _softmax(
                    logits, None if (sink := case.head_sink) is None else sink[head]
                )
            y[b, head, row] = weights @ values[head, [one.slot for one in met]]
    return _laid_out(outer, y), present.key, present.value


def landmark_margins(case: LandmarkCase) -> Array:
    """How clear every choice is, [B,Hq,S]: the score of the last chosen block minus that of the
    best one left out; infinite where none is left out and for rows that are no tokens."""
    case = by_head(case)
    present = _landmark_present(case)
    margins = np.full(case.q.shape[:3], np.inf)
    for b, row, query in _queries(case):
        if _landmark_slot(case, query) < case.past_key.shape[2]:
            q, keys, _ = _read(case, present, b, row)
            margins[b, :, row] = _chosen(case, b, query, q, keys)[1]
    return margins


def _landmark_slot(case: LandmarkCase, token: int) -> int:
    if token < case.sinks or case.landmark:
        return token
    block, offset = divmod(token - case.sinks, case.block)
    return case.sinks + block * (case.block + 1) + offset


def _representative(case: LandmarkCase, block: int) -> int:
    """Slot of what stands for a block: its last token, or the mean after its tokens."""
    last = _landmark_slot(case, case.sinks + (block + 1) * case.block - 1)
    return last if case.landmark else last + 1


def _candidates(case: LandmarkCase, query: int) -> int:
    """How many blocks have their last token at or before query - window."""
    count = 0
    while case.sinks + (count + 1) * case.block - 1 <= query - case.window:
        count += 1
    return count


def _landmark_present(case: LandmarkCase) -> Present:
    """The caches with the call's rows, and with the means of the blocks that it completes."""
    present = _written(case, lambda token: _landmark_slot(case, token))
    capacity = case.past_key.shape[2]
    for b in range(0 if case.landmark else len(case.seen)):
        for t in range(int(case.seen[b]), int(case.seen[b] + case.new[b])):
            block, offset = divmod(t - case.sinks, case.block)
            slot = _representative(case, block)
            if t < case.sinks or offset < case.block - 1 or slot >= capacity:
                continue
            keys = [present.key[b, :, one] for one in range(slot - case.block, slot)]
            present.key[b, :, slot] = _mean(case, keys)
            present.value[b, :, slot] = 0
    return present


def _places(case: LandmarkCase, query: int) -> tuple[list[int], int]:
    """Position of the first token of every candidate, and of the first token after them."""
    candidates = _candidates(case, query)
    kept = min(candidates, case.topk + 1)
    slots = [max(0, kept - 1 - newer) for newer in reversed(range(candidates))]
    return [case.sinks + slot * case.block for slot in slots], case.sinks + kept * case.block


def _position(case: LandmarkCase, query: int, token: int) -> int:
    """Where `query` meets the token, itself included."""
    block, offset = divmod(token - case.sinks, case.block)
    places, after = _places(case, query)
    if token < case.sinks:
        return token
    if block < len(places):
        return places[block] + offset
    return after + (token - case.sinks - len(places) * case.block)


def _chosen(
    case: LandmarkCase, b: int, query: int, q: Array, keys: Array
) -> tuple[list[list[int]], Array]:
    """The blocks that every head [Hq] reads, ascending, and the margins of the choices [Hq]."""
    heads, topk = len(q), case.topk
    places, _ = _places(case, query)
    if len(places) <= topk:
        return [list(range(len(places)))] * heads, np.full(heads, np.inf)
    at = _position(case, query, query)
    offset = case.block - 1 if case.landmark else case.block // 2
    met = [Met(at, at_k + offset, _representative(case, m)) for m, at_k in enumerate(places)]
    scores = _logits(case, b, met, q, keys)
    if case.shared:
        group = heads // case.past_key.shape[1]
        sums = scores.reshape(-1, group, len(places)).sum(axis=1)
        scores = np.repeat(sums, group, axis=0)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    return [sorted(row) for row in order[:, :topk].tolist()], ranked[:, topk - 1] - ranked[:, topk]


def _landmark_met(
    case: LandmarkCase, query: int, blocks: Sequence[int]
) -> tuple[list[int], list[Met]]:
    """The tokens that a query reads, ascending, and how it meets them."""
    after = case.sinks + _candidates(case, query) * case.block
    tokens = list(range(min(case.sinks, query + 1)))
    for block in blocks:
        first = case.sinks + block * case.block
        tokens += range(first, first + case.block)
    tokens += range(after, query + 1)
    at = _position(case, query, query)
    met = [Met(at, _position(case, query, t), _landmark_slot(case, t)) for t in tokens]
    return tokens, met


def _grouped(case: LandmarkCase, query: int, tokens: Sequence[int], logits: Array) -> Array:
    """The grouped softmax of one query over its tokens."""
    of_token = [(t - case.sinks) // case.block if t >= case.sinks else None for t in tokens]
    block_of = np.array([-1 if block is None else block for block in of_token])
    is_landmark = np.array(
        [t >= case.sinks and (t - case.sinks + 1) % case.block == 0 for t in tokens]
    )
    own = (query - case.sinks) // case.block if query >= case.sinks else -1
    is_own = (block_of == -1) | (block_of == own)
    group = np.flatnonzero(is_own ^ is_landmark)  # own tokens, others' landmarks
    weights = np.zeros(len(tokens))
    shares = dict(zip(group.tolist(), _softmax(logits[group]), strict=True))
    for index, share in shares.items():
        if not is_landmark[index]:
            weights[index] = share
            continue
        members = np.flatnonzero((block_of == block_of[index]) & ~is_landmark)
        weights[members] = share * _softmax(logits[members])
    return weights


def present_of(case: FarCase, rule: Rule) -> Present:
    """The caches of a call of [batch, head, token, dim] with its rows and means."""
    present = _written(case, rule.slot)
    if rule.averaged is not None:
        for past, rows, new in zip(
            (case.past_key, case.past_value), (case.k, case.v), present, strict=True
        ):
            for b in range(len(case.seen)):
                for index, mean in rule.averaged(b, past, rows).items():
                    new[b, :, index] = mean
    return present


def _outputs(case: FarCase, rule: Rule) -> Outputs:
    """One call of an operator whose heads all read the same."""
    outer, case = case, by_head(case)
    present = present_of(case, rule)
    y = np.zeros(case.q.shape)
    for b, row, query in _queries(case):
        if rule.slot(query) >= case.past_key.shape[2]:
            y[b, :, row] = np.nan
            continue
        read = rule.met(query)
        q, keys, values = _read(case, present, b, row)
        weights = _softmax(_capped(case, _logits(case, b, read, q, keys)), case.head_sink)
        slots = [one.slot for one in read]
        y[b, :, row] = np.einsum("hn,hnd->hd", weights, values[:, slots])
    return _laid_out(outer, y), present.key, present.value


def _queries(case: AttentionCase) -> Iterator[tuple[int, int, int]]:
    """(sequence, row, token) of every row that is a token."""
    for b, (seen, new) in enumerate(zip(case.seen.tolist(), case.new.tolist(), strict=True)):
        for row in range(min(new, case.q.shape[2])):
            yield b, row, seen + row


def _written(case: AttentionCase, slot: Callable[[int], int]) -> Present:
    """The past with the call's rows in their slots."""
    present = Present(case.past_key.astype(np.float64), case.past_value.astype(np.float64))
    for b, row, token in _queries(case):
        if slot(token) < case.past_key.shape[2]:
            present.key[b, :, slot(token)] = case.k[b, :, row]
            present.value[b, :, slot(token)] = case.v[b, :, row]
    return present


def _mean(case: FarCase, rows: Sequence[NDArray[Any]]) -> Array:
    """The mean of rows as the cache holds it."""
    element = case.past_key.dtype if case.element is None else case.element
    exact = np.mean([row.astype(np.float64) for row in rows], axis=0)
    return np.asarray(exact.astype(element).astype(np.float64))


def _read(case: AttentionCase, present: Present, b: int, row: int) -> tuple[Array, Array, Array]:
    """One row's queries [Hq,D], and keys and values [Hq,C,D] by query head."""
    group = case.q.shape[1] // case.past_key.shape[1]
    keys, values = (np.repeat(cache[b], group, axis=0) for cache in present)
    return case.q[b, :, row].astype(np.float64), keys, values


def _logits(case: AttentionCase, b: int, met: Sequence[Met], q: Array, keys: Array) -> Array:
    """scale · q·k [H,N] of q [H,D] with N of the keys [H,C,D]."""
    at_q, at_k, slots = np.array(met, np.int64).T
    rows = np.repeat(q[:, None], len(met), axis=1)
    products = _turned(case, b, rows, at_q) * _turned(case, b, keys[:, slots], at_k)
    return np.asarray(case.scale * products.sum(axis=-1))


def _turned(case: AttentionCase, b: int, x: Array, positions: NDArray[np.int64]) -> Array:
    """x [H,N,D] of sequence b rotated at `positions` [N]."""
    if not case.rotary_dim:
        return x
    assert case.inv_freq is not None and case.multiplier is not None
    table = min(b, len(case.inv_freq) - 1)
    turned = rotate(
        x[None],
        positions[None],
        case.inv_freq[table : table + 1],
        case.multiplier[table : table + 1],
        rotary_dim=case.rotary_dim,
        interleaved=case.interleaved,
    )
    return np.asarray(turned[0])


def _capped(case: AttentionCase, logits: Array) -> Array:
    return np.asarray(case.softcap * np.tanh(logits / case.softcap)) if case.softcap else logits


def _softmax(logits: Array, sink: Any = None) -> Array:
    """Softmax over the last axis; a sink logit (one per head) joins the denominator only."""
    top = logits.max(axis=-1, keepdims=True)
    extra: Any = 0.0
    if sink is not None:
        column = np.asarray(sink, np.float64)[..., None]
        top = np.maximum(top, column)
        extra = np.exp(column - top)
    weights = np.exp(logits - top)
    return np.asarray(weights / (weights.sum(axis=-1, keepdims=True) + extra))


def _laid_out(case: AttentionCase, y: Array) -> Array:
    """y [B,Hq,S,D] as the call's q lies."""
    return y if case.layout == Layout.HEAD_MAJOR else by_token(y)
