"""Oracles: transformers' own models with float64 angles, where they compute the same thing; one
forward of the whole sequence, where a past is given."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo
from ctx_export.validate.pairwise import PairwiseReference, Past, is_interleaved
from ctx_export.validate.pairwise_side import SyntheticPast
from ctx_export.validate.synthetic import Cache
from ctx_export.validate.torch_reference import HuggingFaceRope, TorchReference
from ctx_export.validate.visibility import causal, sliding_window, streaming
from tests.support import tiny

FREQUENCIES = (1.3 * tiny.THETA ** -(np.arange(8) / 8)).astype(np.float32)
TOKENS = np.random.default_rng(4).integers(0, tiny.VOCAB, 90)
# phi3 turns half of a head, cohere pairs side by side; windows shorter than the text.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 30},
    "qwen3": {
        "use_sliding_window": True,
        "sliding_window": 30,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": {
        "original_max_position_embeddings": tiny.ORIGINAL_CONTEXT,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": tiny.THETA,
            "partial_rotary_factor": 0.5,
        },
        "hidden_size": 64,
        "pad_token_id": 0,
    },
    "cohere": {"pad_token_id": 0},
}
RULES = {
    "mistral": [lambda query: sliding_window(query, window=30)] * 2,
    "qwen3": [lambda query: sliding_window(query, window=30), causal],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("checkpoint"))


def table(length: int) -> tuple[np.ndarray, float]:
    return FREQUENCIES.astype(np.float64), 1.0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by_layer", [False, True])
def test_it_is_transformers_model_where_that_exists(tmp_path, family, by_layer):
    config = FAMILIES[family]
    directory = tiny.save(tmp_path, family=family, **config)
    trained = config.get("rope_parameters", {"rope_type": "default", "rope_theta": tiny.THETA})
    count = 4 if "partial_rotary_factor" in trained else 8
    rope = HuggingFaceRope(
        parameters=trained,
        original_context=tiny.ORIGINAL_CONTEXT,
        inv_freq=FREQUENCIES[:count],
    )
    expected = TorchReference(directory, rope).logits(TOKENS)[0]
    found = PairwiseReference(
        directory,
        RULES.get(family, [causal] * 2),
        lambda length: (FREQUENCIES[:count].astype(np.float64), 1.0),
        by_layer=by_layer,
    )
    scale = np.abs(expected).max()
    assert np.abs(found.logits(TOKENS) - expected).max() < 1e-5 * scale
    rows = found.logits(TOKENS, rows=[0, 80])
    assert np.abs(rows - expected[[0, 80]]).max() < 1e-5 * scale


@pytest.mark.parametrize(("family", "interleaved"), [("llama", False), ("cohere", True)])
def test_the_layout_is_asked_of_the_model_s_own_function(family, interleaved):
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    kind = getattr(module, f"{family.capitalize()}Attention")
    assert is_interleaved(kind.__new__(kind)) is interleaved
    with pytest.raises(UserError, match="Linear does not rotate by apply_rotary_pos_emb"):
        is_interleaved(torch.nn.Linear(1, 1))


def growing(length: int) -> tuple[np.ndarray, float]:
    return FREQUENCIES / (1 + length / 64), 1 + length / 500


@pytest.mark.parametrize("rule", [causal, lambda query: streaming(query, sinks=3, window=20)])
def test_tokens_after_a_past_are_those_of_the_whole_sequence(checkpoint, rule):
    """Their keys and values were computed at the same rope length."""
    model = PairwiseReference(checkpoint, [rule] * 2, growing)
    past = model.own_past(TOKENS[:70])
    assert (past.start, past.keys[0].shape) == (70, (1, tiny.KV_HEADS, 70, tiny.HEAD_DIM))
    lengths = np.array([70] * 70 + [80] * 10 + list(range(81, 91)))
    whole = model.logits(TOKENS, lengths)
    after = model.probe(past, TOKENS[70:], lengths[70:])
    np.testing.assert_allclose(after, whole[70:], rtol=0, atol=1e-4)
    # The length matters, and by default all of it is planned.
    planned = model.logits(TOKENS)
    np.testing.assert_array_equal(planned, model.logits(TOKENS, np.full(90, 90)))
    assert np.abs(planned[70:] - whole[70:]).max() > 0.01
    with pytest.raises(UserError, match="a probe of 65 tokens: give at most 64"):
        model.probe(past, TOKENS[:65])


def test_low_precision_errs_as_much_as_pytorch_s(checkpoint):
    rope = HuggingFaceRope(
        parameters={"rope_type": "default", "rope_theta": tiny.THETA},
        original_context=tiny.ORIGINAL_CONTEXT,
        inv_freq=FREQUENCIES,
    )
    exact = TorchReference(checkpoint, rope, weights="fp16").logits(TOKENS)[0]
    options = {"weights": "fp16", "compute": "fp16"}
    theirs = np.abs(TorchReference(checkpoint, rope, **options).logits(TOKENS)[0] - exact)
    model = PairwiseReference(checkpoint, [causal] * 2, table, **options)
    ours = np.abs(model.logits(TOKENS) - exact)
    assert 0.5 < ours.mean() / theirs.mean() < 2


def cache(policy: str, keys: str, **changes: int) -> CacheInfo:
    values = {"sinks": 2, "window": 4, "capacity": 9, **changes}
    return CacheInfo(policy=policy, keys=keys, rule="streaming", **values)


CACHES = (
    cache("bounded", "rotated"),
    cache("full", "rotated", sinks=0, window=0, capacity=99),
    cache("bounded", "unrotated"),
)


def synthetic(checkpoint: Path, rows: list[int]) -> tuple[SyntheticPast, Cache]:
    generator = np.random.default_rng(6)
    keys, values = (
        tuple(generator.standard_normal((1, 2, n, 16)).astype(np.float32) for n in rows)
        for _ in range(2)
    )
    given = Cache(keys=keys, values=values)
    heads, _ = PairwiseReference(checkpoint, [causal] * 2, table).heads
    layers = len(CACHES)
    past = SyntheticPast(
        caches=CACHES,
        rows=given,
        heads=(heads,) * layers,
        tables=(table(1),) * layers,
        precision="fp32",
    )
    return past, given


@pytest.mark.parametrize(
    ("start", "ring"),
    [
        (1, [0]),
        (5, [0, 1, 2, 3, 4]),
        (9, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (10, [0, 1, 3, 4, 5, 6, 7, 8, 9]),
        (30, [0, 1, *range(23, 30)]),
    ],
)
def test_a_probe_s_layers_hold_what_a_sequence_would_have_left(checkpoint, start, ring):
    past, given = synthetic(checkpoint, [9, 30, 9])
    found: Past = past.past(start)
    assert found.start == start
    assert [tokens.tolist() for tokens in found.tokens] == [ring, list(range(start)), ring]
    stored = past.first(start)
    assert stored.length == start
    for layer, tokens in enumerate(found.tokens):
        count = len(tokens)
        np.testing.assert_array_equal(found.keys[layer], given.keys[layer][:, :, :count])
        np.testing.assert_array_equal(stored.values[layer], given.values[layer][:, :, :count])
    # Unrotated keys are stored as they are, the others turned: dims 1 and 9 are the second pair.
    np.testing.assert_array_equal(stored.keys[2], found.keys[2])
    last = found.keys[0][0, 1, -1].astype(np.float64)
    angle = float(ring[-1] * FREQUENCIES[1].astype(np.float64))
    expected = last[1] * np.cos(angle) - last[9] * np.sin(angle)
    assert stored.keys[0][0, 1, -1, 1] == pytest.approx(expected, abs=1e-6)
