"""Quantised caches in PyTorch. Oracles: the operator's float64 reference and its rotation, and the
two PyTorch references, which quantise on different paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctx_export.core.cache_type import FLOAT8, INT8, CacheType, LayerScales
from ctx_export.ops.reference import quantised, rotate
from ctx_export.validate.pairwise import PairwiseReference
from ctx_export.validate.quantised import CacheNumbers, Turning, as_held
from ctx_export.validate.synthetic import Cache
from ctx_export.validate.torch_reference import HuggingFaceRope, TorchReference
from ctx_export.validate.turning import Heads
from ctx_export.validate.visibility import causal
from tests.support import tiny

KINDS = [FLOAT8, INT8]
FREQUENCIES = (tiny.THETA ** (-np.arange(8) / 8)).astype(np.float32)
TOKENS = np.random.default_rng(4).integers(0, tiny.VOCAB, 90)


def numbers(kind: CacheType, *, rotated: bool = True, spread: float = 4.0) -> CacheNumbers:
    """Scales with which numbers of up to `spread` are not saturated in the second head."""
    scales = (spread / 4 / kind.largest, spread / kind.largest)
    return CacheNumbers(
        kind=kind, scales=LayerScales(key=scales, value=scales[::-1]), rotated=rotated
    )


def heads(rng: np.random.Generator, count: int = 7) -> np.ndarray:
    return rng.standard_normal((2, count, 16)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_read_back_is_scale_times_the_rounded_quotient(kind):
    own, x = numbers(kind), heads(np.random.default_rng(0))
    for found, scales in (
        (own.keys(torch.from_numpy(x)), own.scales.key),
        (own.values(torch.from_numpy(x)), own.scales.value),
    ):
        column = np.array(scales)[:, None, None]
        expected = quantised(x / column, kind.dtype) * column
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=0)
        again = own.keys(found) if scales is own.scales.key else own.values(found)
        np.testing.assert_array_equal(again.numpy(), found.numpy())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pairs", [8, 3])
def test_rotated_keys_are_rounded_as_they_lie_in_the_cache(kind, interleaved, pairs):
    rng = np.random.default_rng(1)
    x, positions = heads(rng), np.array([0, 1, 5, 63, 64, 9000, 131071])
    inv_freq, multiplier = FREQUENCIES[:pairs].astype(np.float64), 1.25
    layout = Heads(head_dim=16, count=pairs, interleaved=interleaved)
    turning = Turning(heads=layout, table=(inv_freq, multiplier), tokens=positions)
    options = {"rotary_dim": 2 * pairs, "interleaved": interleaved}
    table = (inv_freq[None], np.array([multiplier]))
    own = numbers(kind)
    found = own.turned_keys(torch.from_numpy(x), turning).numpy()
    scale = np.array(own.scales.key)[:, None, None]
    stored = rotate(x[None].astype(np.float64), positions[None], *table, **options)[0]
    expected = quantised(stored.astype(np.float32) / scale, kind.dtype) * scale
    again = rotate(found[None], positions[None], *table, **options)[0]
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-6)
    # Unrotated ones as they are.
    plain = replace(own, rotated=False).turned_keys(torch.from_numpy(x), turning)
    np.testing.assert_array_equal(plain.numpy(), own.keys(torch.from_numpy(x)).numpy())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("checkpoint"))


def transformers_side(checkpoint: Path, **options: str) -> TorchReference:
    rope = HuggingFaceRope(
        parameters={"rope_type": "default", "rope_theta": tiny.THETA},
        original_context=tiny.ORIGINAL_CONTEXT,
        inv_freq=FREQUENCIES,
    )
    return TorchReference(checkpoint, rope, **options)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_both_references_read_the_same_numbers(checkpoint, kind):
    held = [numbers(kind)] * tiny.LAYERS
    theirs = transformers_side(checkpoint)
    pairs = PairwiseReference(
        checkpoint,
        [causal] * tiny.LAYERS,
        lambda length: (FREQUENCIES.astype(np.float64), 1.0),
    )
    plain = theirs.logits(TOKENS)[0]
    theirs.hold(held)
    pairs.hold(held)
    rounded = theirs.logits(TOKENS)[0]
    scale = np.abs(plain).max()
    change = np.abs(rounded - plain).max() / scale
    assert change > 0.01
    assert np.abs(pairs.logits(TOKENS) - rounded).max() / scale < 1e-4
    for model in (theirs, pairs):
        model.hold(None)
    assert theirs._model.config._attn_implementation == "sdpa"
    np.testing.assert_array_equal(theirs.logits(TOKENS)[0], plain)
    assert np.abs(pairs.logits(TOKENS) - plain).max() / scale < 1e-5


def test_a_probe_reads_its_past_quantised_once(checkpoint):
    """What a cache holds stays as it is; a past that it cannot hold is rounded."""
    held = [numbers(INT8)] * tiny.LAYERS
    rng = np.random.default_rng(2)
    arrays = [
        tuple(rng.standard_normal((1, 2, 40, 16)).astype(np.float32) for _ in held)
        for _ in range(2)
    ]
    given = Cache(keys=arrays[0], values=arrays[1])
    stored = as_held(given, held)
    assert stored.length == 40
    np.testing.assert_array_equal(as_held(stored, held).keys[1], stored.keys[1])
    model = transformers_side(checkpoint)
    model.hold(held)
    first = model.probe(given, TOKENS[:8])
    np.testing.assert_array_equal(model.probe(stored, TOKENS[:8]), first)
    model.hold(None)
    assert np.abs(model.probe(given, TOKENS[:8]) - first).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_low_precision_errs_as_much_on_either_path(checkpoint, kind):
    held = [numbers(kind)] * tiny.LAYERS
    options = {"weights": "fp16", "compute": "fp16"}
    exact = transformers_side(checkpoint, weights="fp16")
    theirs = transformers_side(checkpoint, **options)
    pairs = PairwiseReference(
        checkpoint,
        [causal] * tiny.LAYERS,
        lambda length: (FREQUENCIES.astype(np.float64), 1.0),
        **options,
    )
    for model in (exact, theirs, pairs):
        model.hold(held)
    expected = exact.logits(TOKENS)[0]
    their_error = np.abs(theirs.logits(TOKENS)[0] - expected).mean()
    assert 0.4 < np.abs(pairs.logits(TOKENS) - expected).mean() / their_error < 2.5
