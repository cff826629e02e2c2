"""Oracles: positions and probes written by hand, and the definition of a partition."""

from __future__ import annotations

import itertools

import pytest

from ctx_export.core.errors import UserError
from ctx_export.validate.positions import (
    PROBE_TOKENS,
    Probe,
    ValidationPlan,
    decode_feeds,
    decoded_positions,
    default_budget,
    feed_limit,
    listed_positions,
    make_plan,
    probe_feeds,
    ragged_chunks,
    rope_lengths,
)


@pytest.mark.parametrize(
    ("original", "maximum", "positions"),
    [
        (256, 1024, (0, 255, 256, 257, 512, 1023)),
        (256, 1000, (0, 255, 256, 257, 512, 999)),
        (256, 1025, (0, 255, 256, 257, 512, 1024)),
        (256, 256, (0, 255)),
        (256, 257, (0, 255, 256)),
        (1, 8, (0, 1, 2, 4, 7)),
        (1, 1, (0,)),
        (3, 100, (0, 2, 3, 4, 6, 12, 24, 48, 96, 99)),
    ],
)
def test_positions_surround_the_trained_context_double_and_end_with_the_last(
    original, maximum, positions
):
    assert listed_positions(original, maximum) == positions


@pytest.mark.parametrize(("original", "maximum"), [(0, 8), (9, 8)])
def test_contexts_that_make_no_sense_are_refused(original, maximum):
    with pytest.raises(UserError, match=f"original context {original} and maximum context 8"):
        listed_positions(original, maximum)


def probes(*spans: tuple[int, int]) -> tuple[Probe, ...]:
    return tuple(Probe(start=start, tokens=end - start) for start, end in spans)


@pytest.mark.parametrize(
    ("contexts", "budget", "prefill", "expected"),
    [
        ((256, 1024), 300, 300, probes((512, 528), (1008, 1024))),
        ((256, 1024), 256, 256, probes((256, 272), (512, 528), (1008, 1024))),
        ((256, 1024), 1, 1, probes((255, 271), (512, 528), (1008, 1024))),
        ((256, 1024), 1024, 1024, ()),
        ((256, 1024), 9999, 1024, ()),
        ((256, 1024), 1023, 1023, probes((1023, 1024))),
        # Near the end, and near one another, probes are cut short rather than computed twice.
        ((256, 4100), 4096, 4096, probes((4096, 4100))),
        ((100, 117), 50, 50, probes((99, 115), (115, 117))),
        ((1, 5), 1, 1, probes((1, 5))),
    ],
)
def test_what_lies_beyond_the_prefill_is_probed(contexts, budget, prefill, expected):
    plan = make_plan(*contexts, budget)
    assert (plan.prefill, plan.probes) == (prefill, expected)
    assert plan.tokens == max([prefill, *(probe.end for probe in expected)])


def test_prefill_and_probes_never_overlap_and_hold_every_listed_position():
    grid = itertools.product(
        (1, 2, 15, 16, 17, 64, 251), (1, 2, 15, 16, 17, 33, 64, 65, 81, 509, 1024), (1, 5, 64, 300)
    )
    compared = 0
    for original, maximum, budget in grid:
        if original > maximum:
            continue
        plan = make_plan(original, maximum, budget)
        spans = [(0, plan.prefill), *((probe.start, probe.end) for probe in plan.probes)]
        assert all(end - start > 0 for start, end in spans)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert spans[-1][1] <= maximum
        assert all(probe.tokens <= PROBE_TOKENS for probe in plan.probes)
        for position in plan.positions:
            assert sum(start <= position < end for start, end in spans) == 1
        assert plan.positions[-1] == maximum - 1
        compared += 1
    assert compared > 100


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(UserError, match="budget is 0: give at least 1 token, such as 4096"):
        make_plan(256, 1024, 0)


def test_a_plan_without_probes_is_as_long_as_its_prefill():
    assert ValidationPlan(prefill=7, positions=(0, 6), probes=()).tokens == 7


@pytest.mark.parametrize(
    ("tokens", "chunks"),
    [
        (0, []),
        (1, [1]),
        (10, [1, 7, 2]),
        (500, [1, 7, 64, 129, 3, 257, 1, 7, 31]),
    ],
)
def test_ragged_chunks_by_hand(tokens, chunks):
    assert ragged_chunks(tokens) == chunks


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [(4_200_000, 4096), (268_435_456, 4096), (440_000_000, 2498), (8_000_000_000, 256), (0, 4096)],
)
def test_a_big_model_has_a_shorter_prefill(parameters, tokens):
    """2^40 tokens × parameters, written out."""
    assert default_budget(parameters) == tokens


@pytest.mark.parametrize(
    ("maximum", "ring", "expected"),
    [
        (None, 47, (0, 47, 63, 64, 65, 142, 470, 10**6, 2**31)),
        (None, 300, (0, 63, 64, 65, 300, 901, 3000, 10**6, 2**31)),
        (256, 47, (0, 47, 63, 64, 65, 128, 142, 255)),
        (142, 47, (0, 47, 63, 64, 65, 128, 141)),
    ],
)
def test_rings_add_their_first_wrap_and_what_follows_three(maximum, ring, expected):
    assert listed_positions(64, maximum, ring) == expected


def test_without_a_maximum_the_prefill_is_the_budget_and_probes_go_far_out():
    plan = make_plan(64, None, 100, 47)
    assert plan.prefill == 100
    assert plan.probes == probes((142, 158), (470, 486), (10**6, 10**6 + 16), (2**31, 2**31 + 16))


PLAN = ValidationPlan(prefill=100, positions=(0, 50, 51, 99, 400), probes=())


def test_listed_positions_are_decoded_with_their_neighbours():
    assert decoded_positions(PLAN) == [0, 1, 2, 48, 49, 50, 51, 52, 53, 97, 98, 99]


@pytest.mark.parametrize(
    ("most", "feeds"),
    [
        (1000, [1, 1, 1, 45, *[1] * 6, 43, 1, 1, 1]),
        (20, [1, 1, 1, 20, 20, 5, *[1] * 6, 20, 20, 3, 1, 1, 1]),
    ],
)
def test_between_them_tokens_are_fed_at_once(most, feeds):
    assert decode_feeds(PLAN, most) == feeds


@pytest.mark.parametrize(
    ("tokens", "feeds"), [(1, [1]), (2, [1, 1]), (5, [1, 1, 1, 1, 1]), (16, [12, 1, 1, 1, 1])]
)
def test_a_probe_is_a_chunk_and_single_tokens(tokens, feeds):
    assert probe_feeds(tokens) == feeds


def test_a_rope_length_is_where_the_feed_ends():
    assert rope_lengths([3, 1, 2]).tolist() == [3, 3, 3, 4, 6, 6]
    assert rope_lengths([2, 1], start=2**31).tolist() == [2**31 + 2, 2**31 + 2, 2**31 + 3]
    assert rope_lengths([]).tolist() == []


def test_a_feed_has_as_many_tokens_as_memory_has_room_for_logits():
    """128 MiB of float32."""
    assert (feed_limit(128_000), feed_limit(1 << 30)) == (262, 1)
