"""The references of the attentions that look behind a window, fed by chunks.

Oracle: a whole sequence at once without cache, each rule as matrices of positions and visibility,
the rotation as a complex number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ctx_export.ops import reference_far as far
from ctx_export.ops.reference import AttentionCase, sink_window_attention
from ctx_export.ops.reference_far import FarCase, LandmarkCase, landmark_attention
from ctx_export.ops.spec import Layout, Rotation
from tests.support.far_calls import (
    FarRule,
    calls,
    dual_chunk,
    feed,
    landmark,
    make_text,
    memory,
    self_extend,
)

Array = NDArray[Any]


@dataclass
class Pairs:
    """What the queries of one sequence meet: positions of query and key and visibility, [N,K], and
    the keys and values themselves, [Hkv,K,D]."""

    query: Array
    key: Array
    visible: Array
    keys: Array
    values: Array


def complex_pairs(x: Array, case: FarCase) -> Array:
    half = case.rotary_dim // 2
    if case.interleaved:
        return x[..., 0 : 2 * half : 2] + 1j * x[..., 1 : 2 * half : 2]
    return x[..., :half] + 1j * x[..., half : 2 * half]


def logits_of(case: FarCase, b: int, pairs: Pairs) -> Array:
    """scale · q·k [Hq,N,K]: a rotation by p and one by r leave an angle of p - r."""
    group = case.q.shape[1] // case.k.shape[1]
    q, keys = case.q[b].astype(np.float64), np.repeat(pairs.keys, group, axis=0)
    logits = q[..., case.rotary_dim :] @ keys[..., case.rotary_dim :].swapaxes(1, 2)
    if case.rotary_dim:
        left, right = complex_pairs(q, case), complex_pairs(keys, case).conj()
        for f, frequency in enumerate(case.inv_freq[b].astype(np.float64)):
            turn = np.exp(1j * frequency * (pairs.query - pairs.key))
            products = left[..., f][:, :, None] * right[..., f][:, None, :]
            logits = logits + float(case.multiplier[b]) ** 2 * (products * turn).real
    return case.scale * logits


def whole(case: FarCase, b: int, pairs: Pairs, logits: Array | None = None) -> Array:
    """y [Hq,N,D] of one sequence."""
    logits = logits_of(case, b, pairs) if logits is None else logits
    if case.softcap:
        logits = case.softcap * np.tanh(logits / case.softcap)
    weights = np.where(pairs.visible, np.exp(logits), 0)
    total = weights.sum(axis=-1, keepdims=True)
    if case.head_sink is not None:
        total = total + np.exp(case.head_sink.astype(np.float64))[:, None, None]
    group = case.q.shape[1] // case.k.shape[1]
    return weights / total @ np.repeat(pairs.values, group, axis=0)


def grid(case: FarCase) -> tuple[Array, Array]:
    """Query i and token j of every pair of one sequence, [N,N]."""
    tokens = np.arange(case.q.shape[2])
    return np.meshgrid(tokens, tokens, indexing="ij")


def plain_pairs(case: FarCase, b: int) -> Pairs:
    i, j = grid(case)
    return Pairs(i, j, j <= i, case.k[b], case.v[b])


def self_extend_pairs(case: Any, b: int) -> Pairs:
    i, j = grid(case)
    near, shift = i - j < case.neighbor, case.neighbor - case.neighbor // case.group
    query = np.where(near, i, i // case.group + shift)
    return Pairs(query, np.where(near, j, j // case.group), j <= i, case.k[b], case.v[b])


def dual_chunk_pairs(case: Any, b: int) -> Pairs:
    i, j = grid(case)
    back = i // case.chunk - j // case.chunk
    far_query = np.full_like(i, case.reach - 1)
    previous = np.minimum(i % case.chunk + case.chunk, far_query)
    query = np.select([back == 0, back == 1], [i % case.chunk, previous], far_query)
    return Pairs(query, j % case.chunk, j <= i, case.k[b], case.v[b])


def memory_pairs(case: Any, b: int) -> Pairs:
    """All tokens, then all blocks; a key's position is how many visible keys are before it."""
    count = case.q.shape[2]
    blocks = max(0, count - case.sinks) // case.block
    i, j = np.arange(count)[:, None], np.arange(count)[None]
    pooled = np.maximum(0, i + 1 - case.sinks - case.window) // case.block
    m = np.arange(blocks)[None]
    sinks, rest = j < case.sinks, j >= case.sinks + pooled * case.block
    tokens = (j <= i) & (sinks | rest)
    kept = (m < pooled) & (m >= pooled - case.memory)
    order = np.concatenate([tokens & sinks, kept, tokens & ~sinks], axis=1)
    rank = np.cumsum(order, axis=1) - 1
    ends = case.sinks + blocks * case.block

    def joined(x: Array) -> Array:
        whole_blocks = x[:, case.sinks : ends].reshape(len(x), blocks, case.block, -1)
        return np.concatenate([x, whole_blocks.mean(axis=2), x], axis=1)

    query = np.broadcast_to(rank[:, -1:], rank.shape)
    return Pairs(query, rank, order, joined(case.k[b]), joined(case.v[b]))


def landmark_whole(case: Any, b: int) -> Array:
    """Query by query; positions by counting the blocks of which room is made."""
    size, topk, count = case.block, case.topk, case.q.shape[2]
    i, j = grid(case)
    candidates = np.maximum(0, i + 1 - case.window - case.sinks) // size
    room = np.minimum(candidates, topk + 1)
    block = (j - case.sinks) // size
    dropped = np.clip(block - (candidates - room), 0, None) * size + (j - case.sinks) % size
    behind = j - (candidates - room) * size
    key = np.where(j < case.sinks, j, np.where(block < candidates, case.sinks + dropped, behind))
    query = i - (candidates - room) * size
    pairs = Pairs(query, key, j <= i, case.k[b], case.v[b])
    blocks = max(0, count - case.sinks) // size
    first = case.sinks + np.arange(blocks) * size
    if case.landmark:
        offset, representative = size - 1, case.k[b][:, first + size - 1]
    else:
        ends = case.sinks + blocks * size
        offset = size // 2
        representative = case.k[b][:, case.sinks : ends].reshape(-1, blocks, size, case.q.shape[3])
        representative = representative.mean(axis=2)
    at = key[:, first] + offset
    scores = logits_of(
        case, b, replace(pairs, query=query[:, :blocks], key=at, keys=representative)
    )
    logits = logits_of(case, b, pairs)
    if case.landmark and case.softcap:
        logits = case.softcap * np.tanh(logits / case.softcap)
    y = np.empty(case.q[b].shape)
    for head in range(len(y)):
        group = case.q.shape[1] // case.k.shape[1]
        heads = slice(head // group * group, (head // group + 1) * group)
        for n in range(count):
            total = scores[heads, n].sum(axis=0) if case.shared else scores[head, n]
            order = sorted(range(candidates[n, 0]), key=lambda m: (-total[m], m))
            chosen = np.isin(block[n], order[:topk]) & (block[n] >= 0)
            seen = pairs.visible[n] & ((j[n] < case.sinks) | (block[n] >= candidates[n]) | chosen)
            if case.landmark:
                weights = grouped_weights(case, n, seen, logits[head, n])
                y[head, n] = weights @ case.v[b, head // group]
                continue
            one = Pairs(pairs.query[[n]], pairs.key[[n]], seen[None], case.k[b], case.v[b])
            y[head, n] = whole(case, b, one, logits[:, [n]])[head, 0]
    return y


def grouped_weights(case: Any, query: int, seen: Array, logits: Array) -> Array:
    """Grouped softmax as the authors compute it: a softmax within every group, where the last
    group has the landmarks of the others, then a product."""
    token = np.arange(len(seen))
    is_landmark = (token >= case.sinks) & ((token - case.sinks + 1) % case.block == 0)
    section = np.where(token < case.sinks, -1, (token - case.sinks) // case.block)
    own = -1 if query < case.sinks else (query - case.sinks) // case.block
    last = (section == own) | (section == -1)
    seen = seen & ~(is_landmark & last)
    bucket = np.where(last | is_landmark, -2, section)
    weights = np.where(seen, np.exp(logits), 0)
    shares = weights / np.array([weights[bucket == one].sum() or 1 for one in bucket])
    gate = np.array([shares[(section == one) & is_landmark].sum() for one in section])
    return np.where(is_landmark, 0, np.where(last, shares, shares * gate))


def expected(rule: FarRule, text: FarCase) -> Array:
    """y [B,Hq,N,D] of whole sequences."""
    if rule.name == "landmark":
        return np.stack([landmark_whole(text, b) for b in range(len(text.q))])
    pairs = globals()[f"{rule.name}_pairs"]
    return np.stack([whole(text, b, pairs(text, b)) for b in range(len(text.q))])


SIZES = (1, 7, 16, 64)
RULES = [
    *(self_extend(group, group * times) for group in SIZES for times in (1, 3)),
    *(dual_chunk(chunk, chunk + local) for chunk in SIZES for local in (0, 5)),
    dual_chunk(7, 30),
    *(memory(sinks, window, block, 3) for block in SIZES for sinks, window in ((0, 1), (4, 9))),
    memory(4, 9, 16, 2, rows=40),
    *(landmark(sinks, window, size, 2) for size in SIZES for sinks, window in ((0, 1), (4, 9))),
    landmark(4, 20, 7, 1, shared=1),
    *(landmark(sinks, 9, size, 2, landmark=1) for size in (2, 7, 16) for sinks in (0, 3)),
    landmark(2, 1, 7, 3, shared=1, landmark=1),
]
CLOSE = {"rtol": 0, "atol": 1e-12}  # float64 sums of values of size 1


def check_chunks(rule: FarRule, lengths: list[int], **choice: Any) -> FarCase:
    """Fed by chunks equals the whole sequence, where no query is close to undecided."""
    text = make_text(rule, lengths, **choice)
    want = expected(rule, text)
    y, last = feed(rule.reference, text, calls(rule, lengths), rule.rows)
    for b, length in enumerate(lengths):
        np.testing.assert_allclose(y[b, :, :length], want[b, :, :length], **CLOSE)
    return last


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_chunks_equal_a_whole_sequence(rule):
    if rule.name == "memory":
        longest = 3 * rule.capacity(0)
    else:
        longest = 140 if 64 in rule.numbers.values() else 70
    check_chunks(rule, [longest, 5, longest // 2])


@pytest.mark.parametrize(
    "choice",
    [
        {"rotary_dim": 0},
        {"rotary_dim": 6, "interleaved": True},
        {"softcap": 2.0},
        {"head_sink": np.array([0.5, -1, 2, 0.0])},
        {"heads": (3, 1), "dim": 4},
    ],
    ids=lambda choice: "-".join(choice),
)
@pytest.mark.parametrize(
    "rule",
    [
        self_extend(4, 8),
        dual_chunk(7, 12),
        memory(2, 5, 4, 3),
        landmark(2, 5, 4, 2),
        landmark(2, 5, 4, 2, shared=1, landmark=1),
    ],
    ids=str,
)
def test_options_are_those_of_every_attention(rule, choice):
    if rule.numbers.get("landmark"):  # refused with a head_sink, see below
        choice = {name: value for name, value in choice.items() if name != "head_sink"}
    check_chunks(rule, [60, 1, 33], **choice)


@pytest.mark.parametrize(
    ("rule", "length"),
    [
        (self_extend(1, 1), 40),
        (self_extend(4, 40), 40),  # all are near
        (dual_chunk(40, 50), 40),
        (memory(3, 5, 1, 45), 50),  # a memory of every evicted token
        (landmark(3, 5, 4, 10), 45),  # as many as there are
        (landmark(0, 1, 1, 45), 45),
    ],
    ids=str,
)
def test_a_rule_that_drops_nothing_is_full_attention(rule, length):
    """Oracles: full attention without cache, and SinkWindowAttention's reference."""
    text = make_text(rule, [length, 7, 30])
    y, _ = feed(rule.reference, text, calls(rule, text.new), rule.rows)
    full = np.zeros((3, 2, length, 16))
    names = ("q", "k", "v", "seen", "new", "scale", "inv_freq", "multiplier", "rotary_dim")
    plain, *_ = sink_window_attention(
        AttentionCase(
            past_key=full,
            past_value=full,
            rotation=Rotation.QUERY_AND_KEYS_ON_READ,
            **{name: getattr(text, name) for name in names},
        )
    )
    for b, count in enumerate(text.new):
        want = whole(text, b, plain_pairs(text, b))
        np.testing.assert_allclose(y[b, :, :count], want[:, :count], **CLOSE)
        np.testing.assert_allclose(y[b, :, :count], plain[b, :, :count], **CLOSE)


def test_means_are_rounded_to_the_caches_type():
    """Oracle: numpy's mean of the tokens, rounded once."""
    rule = memory(1, 2, 4, 3)
    text = make_text(rule, [30, 30, 30], dtype=np.float16)
    _, last = feed(rule.reference, text, calls(rule, text.new), rule.rows)
    slot = 1 + 5 % rule.numbers["memory_slots"]  # block 5: tokens 21 … 24
    for given, got in ((text.k, last.past_key), (text.v, last.past_value)):
        mean = given[:, :, 21:25].astype(np.float64).mean(axis=2)
        np.testing.assert_array_equal(got[:, :, slot], mean.astype(np.float16))


def test_a_block_has_its_mean_and_no_value_after_its_tokens():
    rule = landmark(3, 2, 4, 2)
    text = make_text(rule, [23, 10, 2])
    _, last = feed(rule.reference, text, calls(rule, text.new), rule.rows)
    slots = [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 13]
    np.testing.assert_array_equal(last.past_key[0, :, slots], text.k[0].swapaxes(0, 1)[:12])
    for block in range(5):
        tokens = slice(3 + 4 * block, 7 + 4 * block)
        mean = text.k[0, :, tokens].mean(axis=1)
        np.testing.assert_allclose(last.past_key[0, :, 7 + 5 * block], mean, **CLOSE)
        assert not last.past_value[0, :, 7 + 5 * block].any()
    # Of 10 tokens only the first block is whole.
    np.testing.assert_array_equal(last.past_key[1, :, 12:], text.past_key[1, :, 12:])


@pytest.mark.parametrize("rule", [self_extend(4, 8), landmark(2, 3, 4, 2)], ids=str)
def test_rows_past_a_full_cache_are_nan_and_written_nowhere(rule):
    text = make_text(rule, [23, 23])
    cut = replace(text, past_key=text.past_key[:, :, :20], past_value=text.past_value[:, :, :20])
    y, key, _ = rule.reference(cut)
    whole_y, whole_key, _ = rule.reference(text)
    fit = 20 if rule.name == "self_extend" else 17  # slots 6, 11 and 16 hold means
    np.testing.assert_array_equal(y[:, :, :fit], whole_y[:, :, :fit])
    assert np.isnan(y[:, :, fit:]).all()
    np.testing.assert_array_equal(key, whole_key[:, :, :20])


@pytest.mark.parametrize("layout", [Layout.TOKEN_MAJOR, Layout.PACKED])
def test_layouts_say_where_elements_lie(layout):
    def by_token(x: Array) -> Array:
        return np.moveaxis(x, 1, 2).reshape(len(x), x.shape[2], -1)

    rule = landmark(2, 3, 4, 2)
    text = make_text(rule, [20, 7, 12])
    q, k, v = (by_token(x) for x in (text.q, text.k, text.v))
    if layout == Layout.PACKED:
        q = k = v = np.concatenate([q, k, v], axis=2)
    y, key, value = rule.reference(replace(text, q=q, k=k, v=v, layout=layout))
    same_y, same_key, same_value = rule.reference(text)
    np.testing.assert_array_equal(y, by_token(same_y))
    np.testing.assert_array_equal(key, same_key)
    np.testing.assert_array_equal(value, same_value)


def test_margins_are_the_gap_between_the_last_choice_and_the_next():
    """Keys along one axis: the scores are the blocks' own numbers."""
    rule = landmark(0, 1, 2, 2)
    text = make_text(rule, [9], heads=(1, 1), dim=2, rotary_dim=0, scale=1.0)
    numbers = np.repeat([3.0, 7.0, 5.0, 4.5, 0.0], 2)[:9]
    k = np.stack([numbers, 0 * numbers], axis=-1)[None, None]
    case = replace(text, k=k, q=np.broadcast_to([1.0, 0.0], k.shape))
    margins = far.landmark_margins(case)[0, 0]
    # From query 6 on there are three whole blocks before it, from 8 on four.
    np.testing.assert_array_equal(margins, [np.inf] * 6 + [2.0, 2.0, 0.5])


def test_of_equal_blocks_the_earlier_is_chosen():
    rule = landmark(0, 1, 2, 1)
    text = make_text(rule, [7], heads=(1, 1), rotary_dim=0)
    values = np.zeros(text.v.shape)
    values[0, 0, :2] = 1
    case = replace(text, k=np.ones(text.k.shape), v=values)
    y, *_ = landmark_attention(case)
    # Query 6 meets the chosen block's two tokens and itself, all alike.
    np.testing.assert_allclose(y[0, 0, 6], 2 / 3, **CLOSE)


def test_grouped_softmax_has_no_learned_sink():
    text = make_text(landmark(0, 1, 2, 1, landmark=1), [7])
    assert isinstance(text, LandmarkCase)
    with pytest.raises(ValueError, match="no learned sink"):
        landmark_attention(replace(text, head_sink=np.zeros(4)))
