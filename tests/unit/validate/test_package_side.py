"""Oracle: a backend whose logits say which token stands at which position, and what it was fed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ctx_export.core.progress import SilentProgress
from ctx_export.runtime.contract import Contract
from ctx_export.runtime.session import Session
from ctx_export.validate import positions
from ctx_export.validate.compare import RowErrors, Rule, row_errors
from ctx_export.validate.package_side import (
    Feeder,
    _Table,
    chunked,
    compare_session,
    decoded,
    prefill,
    probed,
)
from ctx_export.validate.positions import ValidationPlan, make_plan
from ctx_export.validate.reference_side import BlockReference, References
from ctx_export.validate.synthetic import Cache
from tests.unit.runtime.fakes import VOCAB, FakeBackend, manifest

TOKENS = np.random.default_rng(1).integers(1, 50, 100)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(1, manifest().cache)


@pytest.fixture
def feeder(backend) -> Feeder:
    package = manifest(max_chunk=32)
    session = Session(package, Contract.from_manifest(package), backend)
    return Feeder(session, SilentProgress(), 1)


def expected(positions: np.ndarray, before: int = 0) -> np.ndarray:
    """Logits [R,V] of rows of TOKENS that follow a cache whose ids sum to `before`."""
    logits = np.zeros((len(positions), VOCAB), np.float32)
    logits[:, 0] = before + np.cumsum(TOKENS)[positions]
    logits[:, 1] = positions
    logits[:, 2] = -1
    return logits


def fed(backend: FakeBackend) -> list[int]:
    """Tokens of every call."""
    return [int(step.new[0]) for step in backend.steps]


ROWS = np.array([0, 3, 31, 32, 64, 98, 99])


def test_a_prefill_is_cut_by_the_session(feeder, backend):
    np.testing.assert_array_equal(prefill(feeder, TOKENS, ROWS), expected(ROWS))
    assert fed(backend) == [32, 32, 32, 4]


def test_a_prefill_of_a_large_vocabulary_is_fed_in_pieces(feeder, backend, monkeypatch):
    monkeypatch.setattr(positions, "_FEED_BYTES", 40 * 4 * VOCAB)
    np.testing.assert_array_equal(prefill(feeder, TOKENS, ROWS), expected(ROWS))
    assert fed(backend) == [32, 8, 32, 8, 20]


def test_ragged_chunks_are_fed_as_they_are(feeder, backend):
    np.testing.assert_array_equal(chunked(feeder, TOKENS, ROWS), expected(ROWS))
    assert fed(backend) == [1, 7, 32, 32, 28]  # 64 is two of the session's own


def test_decoding_goes_token_by_token_around_the_listed_positions(feeder, backend):
    plan = ValidationPlan(prefill=100, positions=(0, 50, 51, 99, 400), probes=())
    prefill(feeder, TOKENS, ROWS)
    before = len(fed(backend))
    positions, logits = decoded(feeder.session, plan, TOKENS)
    assert positions.tolist() == [0, 1, 2, 48, 49, 50, 51, 52, 53, 97, 98, 99]
    np.testing.assert_array_equal(logits, expected(positions))
    assert fed(backend)[before:] == [1] * 12


@pytest.mark.parametrize(
    ("tokens", "calls"), [(1, [1]), (2, [1, 1]), (5, [1, 1, 1, 1, 1]), (16, [12, 1, 1, 1, 1])]
)
def test_a_probe_ends_token_by_token(feeder, backend, tokens, calls):
    keys = (np.arange(30, dtype=np.float32).reshape(1, 1, 30, 1),)
    logits = probed(feeder, Cache(keys=keys, values=keys), TOKENS[:tokens])
    wanted = expected(np.arange(tokens), before=sum(range(30)))
    wanted[:, 1] += 30
    np.testing.assert_array_equal(logits, wanted)
    assert fed(backend) == calls


def references(plan: ValidationPlan) -> References:
    zeros = (np.zeros((1, 1, 900, 1), np.float32),)

    def block(positions: np.ndarray, first: int) -> BlockReference:
        logits = expected(positions - first)
        logits[:, 1] = positions
        nothing = row_errors(logits, logits)
        half = RowErrors(
            scale=nothing.scale, maximum=nothing.maximum + 0.5, mean=nothing.mean + 0.25
        )
        return BlockReference(
            positions=positions,
            logits=logits,
            own_table=nothing,
            unmodified=half,
            peers={},
            scale=nothing.scale,
        )

    return References(
        tokens=TOKENS[: plan.prefill],
        prefill=block(np.arange(plan.prefill), 0),
        probes=tuple((p, block(np.arange(p.start, p.end), p.start)) for p in plan.probes),
        probe_tokens=TOKENS[:64],
        cache=Cache(keys=zeros, values=zeros),
        inv_freq=np.ones(1, np.float32),
        multiplier=1.0,
    )


class Moves(SilentProgress):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def update(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def test_every_way_is_compared_and_progress_counts_the_tokens(feeder):
    plan = make_plan(20, 900, 50)
    moves = Moves()
    compared = compare_session(
        feeder.session, plan, references(plan), Rule.of("fp32", None), moves
    )
    assert compared.problems == ()
    assert all(row.max_error == 0 and row.passed for row in compared.rows)
    assert {(row.transformers, row.own_table) for row in compared.rows} == {(0.5, 0.0)}
    singles = [(row.how, row.position) for row in compared.rows if not row.is_range]
    inside, outside = [0, 19, 20, 21, 40], [80, 160, 320, 640, 899]
    assert singles == [
        *((how, p) for how in ("prefill", "chunks", "decode") for p in inside),
        *(("probe", p) for p in outside),
    ]
    total = 2 * 50 + 5 * 16
    assert {seen[1] for seen in moves.seen} == {total}
    done = [seen[0] for seen in moves.seen]
    assert all(first < second for first, second in pairwise(done))
    assert done[-1] == total


def test_the_loss_is_what_prefill_chunks_and_decode_differ_from_unquantised_logits(feeder):
    """Those of the prefill are off by twice the scale, those of the probes by more."""
    plan = make_plan(20, 900, 50)
    right = references(plan)

    def moved(block: BlockReference, by: float) -> BlockReference:
        return block.beside(block.logits + np.float32(by * block.scale))

    probes = tuple((probe, moved(block, 4.0)) for probe, block in right.probes)
    told = replace(right, prefill=moved(right.prefill, 2.0), probes=probes)
    rule = Rule.of("fp32", None, quantised=True)
    compared = compare_session(feeder.session, plan, told, rule, SilentProgress())
    assert compared.loss == pytest.approx((2.0, 2.0))
    for row in compared.rows:
        change = 4.0 if row.how == "probe" else 2.0
        assert row.limit == pytest.approx(1e-3 + 0.25 * change)
        mean = 1e-4 + 0.15 * change if row.is_range else None
        assert row.mean_limit == (None if mean is None else pytest.approx(mean))
    plain = compare_session(feeder.session, plan, right, rule, SilentProgress())
    assert plain.loss is None and {row.mean_limit for row in plain.rows} == {None}


def test_an_error_is_told_where_it_is(feeder):
    plan = make_plan(20, 900, 50)
    right = references(plan)
    right.prefill.logits[20, 7] = 1000.0  # the package has 0 there; it is the new scale too
    scale = row_errors(right.prefill.logits, right.prefill.logits).scale
    unmodified = RowErrors(scale=scale, maximum=np.zeros(50), mean=np.zeros(50))
    block = BlockReference(
        positions=right.prefill.positions,
        logits=right.prefill.logits,
        own_table=unmodified,
        unmodified=unmodified,
        peers={},
        scale=scale,
    )
    told = References(
        tokens=right.tokens,
        prefill=block,
        probes=(),
        probe_tokens=right.probe_tokens,
        cache=None,
        inv_freq=right.inv_freq,
        multiplier=1.0,
    )
    compared = compare_session(feeder.session, plan, told, Rule.of("fp32", None), SilentProgress())
    wrong = [(row.how, row.position, row.last) for row in compared.rows if not row.passed]
    assert scale == max(1000.0, float(TOKENS[:50].sum()))
    assert wrong == [
        ("prefill", 20, 20),
        ("prefill", 0, 49),
        ("chunks", 20, 20),
        ("chunks", 0, 49),
        ("decode", 20, 20),
        ("decode", 0, 42),
    ]
    # Of the whole block's scale, also where only some of its rows were decoded.
    singles = [row for row in compared.rows if not row.passed and not row.is_range]
    assert [row.max_error for row in singles] == pytest.approx([1000.0 / scale] * 3, rel=1e-12)
    assert singles[0].mean_error == pytest.approx(1000.0 / scale / VOCAB, rel=1e-12)


def test_rows_that_a_precision_does_not_decide_neither_fail_nor_excuse():
    """Row 1 reads other blocks here, row 2 in PyTorch's fp16."""
    logits = np.ones((4, 4), np.float32)
    peer = logits + np.array([[1e-3], [1e-3], [0.5], [1e-3]], np.float32)
    whole = BlockReference(
        positions=np.arange(10, 14),
        logits=logits,
        own_table=None,
        unmodified=None,
        peers={"fp16": row_errors(peer, logits)},
        scale=1.0,
        undecided=1,
        decided={"fp16": np.array([True, False, False, True])},
    )
    assert whole.computed_in("fp32") is whole
    block = whole.computed_in("fp16")
    assert (block.positions.tolist(), block.undecided) == ([10, 13], 3)
    table = _Table(ValidationPlan(prefill=20, positions=(10,), probes=()), Rule.of("fp16", None))
    table.add("prefill", block, logits[[0, 3]] + np.float32(2e-3))
    assert all(row.passed for row in table.rows)
    assert [row.limit for row in table.rows] == pytest.approx([2e-3 + 2.0**-11] * 2, rel=1e-3)
