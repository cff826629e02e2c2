"""Oracles: rows written by hand, and a llama in float64."""

from __future__ import annotations

import numpy as np

from ctx_export.core.progress import SilentProgress
from ctx_export.validate import reference_side
from ctx_export.validate.positions import make_plan
from ctx_export.validate.reference_side import (
    ReferenceSettings,
    kept_rows,
    random_tokens,
    reference_logits,
)
from ctx_export.validate.synthetic import CALIBRATION_TOKENS
from ctx_export.validate.torch_reference import HuggingFaceRope
from tests.support import tiny
from tests.unit.validate.float64_llama import Float64Llama


def test_every_row_of_a_small_vocabulary_is_kept():
    plan = make_plan(64, 1024, 200)
    assert kept_rows(plan, 97).tolist() == list(range(200))


def test_of_a_large_vocabulary_listed_rows_their_neighbours_and_spread_ones_are_kept(monkeypatch):
    monkeypatch.setattr(reference_side, "_LOGIT_BYTES", 100 * 4 * 128000)
    plan = make_plan(512, 100_000, 4096)
    rows = kept_rows(plan, 128000).tolist()
    assert rows == sorted(set(rows))
    near = {0, 1, 2, *range(509, 516), *range(1022, 1027), *range(2046, 2051), 4094, 4095}
    assert near <= set(rows)
    assert len(rows) <= 100 + len(near)
    assert max(np.diff(rows)) <= 42  # 4096 over 99 steps


def test_tokens_are_seeded_and_of_the_vocabulary():
    tokens = random_tokens(5000, 11)
    assert tokens.dtype == np.int64
    assert set(tokens.tolist()) == set(range(11))
    np.testing.assert_array_equal(random_tokens(5000, 11), tokens)


def test_references_are_the_exact_logits_with_pytorch_s_own_errors_beside_them(tmp_path):
    """The table is transformers' own: only its float32 angles, and float16, err."""
    checkpoint = tiny.save(tmp_path)
    rope = HuggingFaceRope(
        parameters={"rope_type": "linear", "rope_theta": tiny.THETA, "factor": 2.0},
        original_context=tiny.ORIGINAL_CONTEXT,
    )
    settings = ReferenceSettings(checkpoint=checkpoint, rope=rope, weights="fp32", peers=("fp16",))
    plan = make_plan(tiny.ORIGINAL_CONTEXT, 40_000, 30)
    found = reference_logits(settings, plan, SilentProgress())
    assert found.multiplier == 1.0 and len(found.tokens) == 30
    tokens = random_tokens(CALIBRATION_TOKENS, tiny.VOCAB)
    np.testing.assert_array_equal(found.tokens, tokens[:30])
    np.testing.assert_array_equal(found.probe_tokens, tokens)
    assert found.cache is not None and found.cache.length == plan.probes[-1].start
    oracle = Float64Llama(checkpoint, found.inv_freq.astype(np.float64))
    expected = [oracle.logits(tokens[:30])] + [
        oracle.logits(tokens[: probe.tokens], found.cache.first(probe.start))
        for probe in plan.probes
    ]
    blocks = [found.prefill, *(block for _, block in found.probes)]
    spans = [(0, 30), *((probe.start, probe.end) for probe in plan.probes)]
    for block, logits, span in zip(blocks, expected, spans, strict=True):
        assert block.positions.tolist() == list(range(*span))
        scale = np.abs(logits).max()
        assert np.abs(block.logits - logits).max() < 2e-5 * scale
        assert block.unmodified.scale == np.float64(np.abs(block.logits).max())
        assert not block.own_table.maximum.any()
        assert 1e-5 < block.peers["fp16"].maximum.max() < 0.1
    last = blocks[-1].unmodified.maximum.max()
    assert last > 1e-4 > 10 * blocks[0].unmodified.maximum.max()
