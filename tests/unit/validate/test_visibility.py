"""Oracles: tokens and positions of single queries by hand, and the paper's own numbering."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo
from ctx_export.validate.visibility import Group, causal, lm_infinite, rule_of, streaming


def listed(groups: tuple[Group, ...]) -> list[tuple[list[int], list[int], int]]:
    return [(g.keys.tolist(), g.positions.tolist(), g.query_position) for g in groups]


def cache(rule: str, sinks: int = 0, window: int = 0) -> CacheInfo:
    policy = "bounded" if window else "full"
    return CacheInfo(
        policy=policy, rule=rule, sinks=sinks, window=window, capacity=99, keys="rotated"
    )


def test_a_causal_query_meets_every_token_where_it_is():
    assert listed(causal(0)) == [([0], [0], 0)]
    assert listed(causal(3)) == [([0, 1, 2, 3], [0, 1, 2, 3], 3)]


@pytest.mark.parametrize(
    ("query", "first", "recent"),
    [
        (0, ([0], [0]), ([], [])),
        (1, ([0, 1], [0, 1]), ([], [])),
        (4, ([0, 1], [0, 1]), ([2, 3, 4], [2, 3, 4])),
        # The first token is out: the sinks move along, two places before the window.
        (5, ([0, 1], [1, 2]), ([3, 4, 5], [3, 4, 5])),
        (100, ([0, 1], [96, 97]), ([98, 99, 100], [98, 99, 100])),
    ],
)
def test_streaming_puts_the_sinks_right_before_the_window(query, first, recent):
    assert listed(streaming(query, sinks=2, window=3)) == [(*first, query), (*recent, query)]


@pytest.mark.parametrize("query", [0, 1, 2, 3, 7, 8, 9, 50])
def test_streaming_has_the_distances_of_the_paper_s_cache(query):
    """The paper's cache: what is seen, numbered 0, 1, 2, … with the query last."""
    groups = streaming(query, sinks=3, window=5)
    keys = np.concatenate([group.keys for group in groups])
    positions = np.concatenate([group.positions for group in groups])
    seen = [j for j in range(query + 1) if j < 3 or query - j < 5]
    assert keys.tolist() == seen
    distances = len(seen) - 1 - np.arange(len(seen))
    assert (query - positions).tolist() == distances.tolist()


def test_lm_infinite_caps_the_distance_to_the_first_tokens():
    rule = {"sinks": 2, "window": 3, "limit": 8}
    assert listed(lm_infinite(4, **rule)) == [([0, 1], [0, 1], 4), ([2, 3, 4], [2, 3, 4], 4)]
    assert listed(lm_infinite(9, **rule)) == [([0, 1], [0, 1], 7), ([7, 8, 9], [7, 8, 9], 9)]


def test_rules_go_by_the_cache_s_name():
    assert listed(rule_of(cache("causal"), 8)(2)) == listed(causal(2))
    window = rule_of(cache("sliding-window", window=2), 8)
    assert listed(window(5)) == [([4, 5], [4, 5], 5)]
    found = rule_of(cache("streaming", 2, 3), 8)(9)
    assert listed(found) == listed(streaming(9, sinks=2, window=3))
    found = rule_of(cache("lm-infinite", 2, 3), 8)(9)
    assert listed(found) == listed(lm_infinite(9, sinks=2, window=3, limit=8))


@pytest.mark.parametrize(
    "unknown", [cache("h2o", 1, 4), cache("sliding-window", 1, 4), cache("causal", 0, 4)]
)
def test_a_rule_that_is_unknown_is_refused(unknown):
    words = f"rule {unknown.rule} with {unknown.sinks} sinks and window 4 has no PyTorch reference"
    with pytest.raises(UserError, match=words):
        rule_of(unknown, 8)
