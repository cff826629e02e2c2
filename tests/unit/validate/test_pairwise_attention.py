"""Oracle: attention of one query after the other in numpy float64, pairs turned by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctx_export.validate import pairwise_attention
from ctx_export.validate.pairwise_attention import Attention, Cached, Scores, blocks, meetings
from ctx_export.validate.turning import Heads
from ctx_export.validate.visibility import Group, causal, lm_infinite, sliding_window, streaming

KV_HEADS, GROUP, HEAD_DIM, PAIRS = 2, 3, 10, 4
HEADS = KV_HEADS * GROUP
INV_FREQ = 7.0 ** -np.arange(PAIRS)


def by_length(length: int) -> tuple[np.ndarray, float]:
    """A table that no two lengths share."""
    return INV_FREQ / (1 + 0.03 * length), 1 + 0.01 * length


def turned(x: np.ndarray, position: int, length: int, interleaved: bool = False) -> np.ndarray:
    """One head [D] at a position, pair by pair; the last dims stay."""
    inv_freq, multiplier = by_length(length)
    out = x.astype(np.float64).copy()
    for i, frequency in enumerate(inv_freq):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + PAIRS)
        cos, sin = np.cos(position * frequency), np.sin(position * frequency)
        out[a] = multiplier * (x[a] * cos - x[b] * sin)
        out[b] = multiplier * (x[b] * cos + x[a] * sin)
    return out


def one_query(x: dict, head: int, row: int, rule, length: int, softcap: float = 0.0) -> np.ndarray:
    """Attended values [D] of query `row` of x["query"]; groups with their own query positions."""
    tokens, start = x["tokens"], len(x["tokens"]) - x["query"].shape[1]
    scores, values = [], []
    for group in rule(int(tokens[start + row])):
        query = turned(x["query"][head, row], group.query_position, length)
        for key, position in zip(group.keys, group.positions, strict=True):
            at = tokens.tolist().index(key)
            score = query @ turned(x["key"][head // GROUP, at], position, length) * 0.3
            scores.append(softcap * np.tanh(score / softcap) if softcap else score)
            values.append(x["value"][head // GROUP, at])
    weights = np.exp(np.array(scores) - max(scores))
    return (weights / weights.sum()) @ np.array(values, np.float64)


def case(new: int, tokens: np.ndarray | None = None) -> dict:
    generator = np.random.default_rng(3)
    tokens = np.arange(new) if tokens is None else tokens
    shape = (KV_HEADS, len(tokens), HEAD_DIM)
    return {
        "query": generator.standard_normal((HEADS, new, HEAD_DIM)).astype(np.float32),
        "key": generator.standard_normal(shape).astype(np.float32),
        "value": generator.standard_normal(shape).astype(np.float32),
        "tokens": tokens,
    }


def attended(x: dict, rule, lengths: np.ndarray, **scores) -> np.ndarray:
    heads = Heads(head_dim=HEAD_DIM, count=PAIRS)
    query, key, value = (torch.from_numpy(x[name]) for name in ("query", "key", "value"))
    cached = Cached(keys=key, values=value, tokens=x["tokens"])
    layer = Attention(rule=rule, table=by_length, heads=heads)
    return layer.attend(query, cached, lengths, Scores(scaling=0.3, **scores)).numpy()


def literal(query: int) -> tuple[Group, ...]:
    """Streaming as the paper numbers it: every query has other positions for the same keys."""
    keys = np.array([j for j in range(query + 1) if j < 2 or query - j < 5])
    slots = np.arange(len(keys))
    return (Group(keys=keys, positions=slots, query_position=len(keys) - 1),)


RULES = {
    "causal": causal,
    "window": lambda query: sliding_window(query, window=5),
    "streaming": lambda query: streaming(query, sinks=2, window=5),
    "streaming, slots": literal,
    "lm-infinite": lambda query: lm_infinite(query, sinks=2, window=5, limit=9),
}
TOKENS = 21


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("block", [1, 4, 64])
def test_every_query_is_attention_over_what_it_lists(monkeypatch, rule, block):
    monkeypatch.setattr(pairwise_attention, "_BLOCK", block)
    x = case(TOKENS)
    lengths = np.array([9] * 10 + [12] * 5 + list(range(16, TOKENS + 1)))
    found = attended(x, rule, lengths)
    for head in (0, 2, HEADS - 1):
        for row in range(TOKENS):
            expected = one_query(x, head, row, rule, int(lengths[row]))
            np.testing.assert_allclose(found[head, row], expected, rtol=0, atol=1e-12)


def test_learned_sinks_join_the_softmax_without_a_value():
    """Oracle: weights by hand, e^s over the visible scores and one more logit per head."""
    x, logits = case(TOKENS), np.linspace(-1.0, 2.0, HEADS)
    lengths = np.full(TOKENS, TOKENS)
    without = attended(x, causal, lengths)
    found = attended(x, causal, lengths, sinks=torch.from_numpy(logits))
    for head in (0, 2, HEADS - 1):
        for row in (0, 7, TOKENS - 1):
            query = turned(x["query"][head, row], row, TOKENS)
            keys = [turned(k, j, TOKENS) for j, k in enumerate(x["key"][head // GROUP][: row + 1])]
            total = sum(np.exp(query @ key * 0.3) for key in keys)
            kept = total / (total + np.exp(logits[head]))
            expected = without[head, row] * kept
            np.testing.assert_allclose(found[head, row], expected, rtol=0, atol=1e-12)


def test_places_of_the_cache_and_moved_ones_are_the_same_attention():
    x, lengths = case(TOKENS), np.full(TOKENS, TOKENS)
    paper = attended(x, literal, lengths)
    np.testing.assert_allclose(attended(x, RULES["streaming"], lengths), paper, atol=1e-13)


@pytest.mark.parametrize("start", [17, 1_000_000, 1 << 31])
def test_tokens_far_out_see_the_few_that_are_given(start):
    tokens = np.array([0, 1, *range(start - 5, start + 3)])
    x = case(3, tokens)
    for rule in (RULES["streaming"], RULES["lm-infinite"]):
        found = attended(x, rule, np.full(3, 4))
        for row in range(3):
            expected = one_query(x, 5, row, rule, 4)
            np.testing.assert_allclose(found[5, row], expected, rtol=0, atol=1e-6)


def test_a_token_that_is_seen_and_not_given_is_an_error():
    x = case(3, np.array([0, 1, *range(12, 20)]))
    with pytest.raises(ValueError, match="tokens 0 to 17 are seen and not all given"):
        attended(x, causal, np.full(3, 4))


def test_a_softcap_bounds_the_scores():
    x, lengths = case(6), np.full(6, 6)
    found = attended(x, causal, lengths, softcap=0.5)
    expected = one_query(x, 1, 5, causal, 6, softcap=0.5)
    np.testing.assert_allclose(found[1, 5], expected, atol=1e-12)
    assert np.abs(found - attended(x, causal, lengths)).max() > 0.01


def test_low_precision_stores_what_pytorch_would():
    """Queries, keys and weights in float16: about 2^-11 off, and not more."""
    x, lengths = case(TOKENS), np.full(TOKENS, 4)
    heads = Heads(head_dim=HEAD_DIM, count=PAIRS)
    query, key, value = (torch.from_numpy(x[name]) for name in ("query", "key", "value"))
    cached = Cached(keys=key, values=value, tokens=x["tokens"])
    low = Attention(rule=causal, table=by_length, heads=heads, rounding=torch.float16)
    error = np.abs(
        low.attend(query, cached, lengths, Scores(scaling=0.3)).numpy()
        - attended(x, causal, lengths)
    )
    assert 1e-5 < error.max() < 2e-2


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5], [(0, 1)]),
        ([5, 5, 6, 7, 7], [(0, 2), (2, 3), (3, 5)]),
        ([1] * 130, [(0, 64), (64, 128), (128, 130)]),
        ([1] * 64 + [2], [(0, 64), (64, 65)]),
        ([], []),
    ],
)
def test_blocks_are_runs_of_one_length(lengths, expected):
    found = blocks(np.array(lengths, np.int64))
    assert [(block.start, block.stop) for block in found] == expected


def test_keys_at_one_position_are_listed_once_and_others_for_each_query():
    (shared,) = meetings([causal(2), causal(4)], np.arange(6))
    assert shared.rows.tolist() == [0, 1, 2, 3, 4]
    assert shared.visible.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    (own,) = meetings([literal(7), literal(8)], np.arange(9))
    assert own.rows.tolist() == [[0, 1, 3, 4, 5, 6, 7], [0, 1, 4, 5, 6, 7, 8]]
    assert own.positions.tolist() == [0, 1, 2, 3, 4, 5, 6]  # the same for both
    (own,) = meetings([literal(4), literal(7)], np.arange(9))
    assert own.rows.tolist() == [[0, 1, 2, 3, 4, 0, 0], [0, 1, 3, 4, 5, 6, 7]]
    assert own.positions.tolist() == [[0, 1, 2, 3, 4, 0, 0], [0, 1, 2, 3, 4, 5, 6]]
    assert own.visible.tolist() == [[1] * 5 + [0] * 2, [1] * 7]


@pytest.mark.parametrize("interleaved", [False, True])
def test_heads_turn_in_their_own_layout(interleaved):
    heads = Heads(head_dim=HEAD_DIM, count=PAIRS, interleaved=interleaved)
    x = np.random.default_rng(5).standard_normal((2, 3, HEAD_DIM)).astype(np.float32)
    positions = np.array([0, 7, 5])
    found = heads.rotated(x, by_length(3), positions)
    assert found.dtype == np.float32
    for row, position in enumerate(positions):
        expected = turned(x[1, row], position, 3, interleaved)
        np.testing.assert_allclose(found[1, row], expected, rtol=0, atol=1e-6)
    source = torch.from_numpy(x)
    assert torch.equal(heads.merged(heads.pairs(source)), source.double())
