"""Frequencies that follow the length, over caches of unrotated keys.

Oracles: transformers' own single forward (a fresh model per length, batch 1) for a length that was
planned, and transformers' tables in a pairwise float64 reference for one that grows.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.core.manifest import Manifest
from ctx_export.validate.pairwise import PairwiseReference
from ctx_export.validate.visibility import causal, rule_of
from tests.support import tiny
from tests.support.feeding import error, opened

TOLERANCE = 1e-4  # of the logit scale
TRAINED, TARGET = tiny.ORIGINAL_CONTEXT, 4 * tiny.ORIGINAL_CONTEXT
PAIRS = tiny.HEAD_DIM // 2
SHORT = [1.0 + 0.05 * i for i in range(PAIRS)]
LONG = [1.5 + 0.5 * i for i in range(PAIRS)]
LONGROPE = {"short_factor": SHORT, "long_factor": LONG, "attention_factor": 1.2}

# A method's export options, and transformers' words for it at length n.
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "dynamic-ntk": (
        {"method": "dynamic-ntk", "target": TARGET},
        lambda n: {"rope_type": "dynamic", "factor": 4.0},
    ),
    "dynamic-yarn": (
        {"method": "dynamic-yarn", "target": TARGET},
        lambda n: {
            "rope_type": "yarn",
            "factor": max(1.0, n / TRAINED),
            "original_max_position_embeddings": TRAINED,
        },
    ),
    "longrope": (
        {"method": "longrope", "target": TARGET, "parameters": LONGROPE},
        lambda n: {
            "rope_type": "longrope",
            "factor": 4.0,
            "original_max_position_embeddings": TRAINED,
            **LONGROPE,
        },
    ),
}
LENGTHS = (TRAINED - 1, TRAINED, TRAINED + 1, TRAINED + 40, TARGET)


class Lab:
    def __init__(self, root: Path) -> None:
        self.checkpoint = tiny.save(root / "checkpoint")
        source = tiny.source(self.checkpoint)
        self.packages = {
            name: tiny.export(source, root / name, max_chunk=16, max_batch=3, **options)
            for name, (options, _) in CASES.items()
        }

    def whole(self, name: str, ids: np.ndarray) -> np.ndarray:
        """transformers' single forward over all of `ids`."""
        import torch

        rope = {"rope_theta": tiny.THETA, **CASES[name][1](len(ids))}
        with torch.inference_mode():
            logits = tiny.load(self.checkpoint, rope)(torch.from_numpy(ids[None])).logits
        return logits[0].numpy()

    def table(self, name: str, length: int) -> tuple[np.ndarray, float]:
        """transformers' own table at a length."""
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        config = tiny.load(self.checkpoint).config
        config.rope_parameters = {"rope_theta": tiny.THETA, **CASES[name][1](length)}
        kind = config.rope_parameters["rope_type"]
        inv_freq, multiplier = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
        return inv_freq.double().numpy(), float(multiplier)

    def growing(self, name: str, ids: np.ndarray, lengths: np.ndarray, rule: Any) -> np.ndarray:
        """The pairwise reference where token i was fed at rope length `lengths[i]`."""
        table = cache(lambda length: self.table(name, length))
        model = PairwiseReference(self.checkpoint, [rule] * tiny.LAYERS, table)
        return model.logits(ids, lengths)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("dynamic"))


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, tiny.VOCAB, count)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", CASES)
def test_a_planned_length_equals_a_single_forward_at_it(lab, name, length):
    ids = tokens(length)
    expected = lab.whole(name, ids)
    with opened(lab.packages[name]) as session:
        assert error(session.feed(ids[None], length)[0], expected) < TOLERANCE
        session.reset()
        parts, start = [], 0
        for size in (5, 1, 1, 17, 30, 1, length):
            parts.append(session.feed(ids[None, start : start + size], length)[0])
            start += size
        assert error(np.concatenate(parts), expected) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_decoding_across_the_switch_equals_unrotated_keys_token_by_token(lab, name):
    """Every length from the first token to past the switch, and on."""
    ids = tokens(TRAINED + 30, seed=1)
    lengths = np.arange(1, len(ids) + 1)
    expected = lab.growing(name, ids, lengths, causal)
    with opened(lab.packages[name]) as session:
        logits = np.concatenate([session.feed(ids[None, i : i + 1])[0] for i in range(len(ids))])
    assert error(logits, expected) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_sequences_of_a_batch_switch_on_their_own(lab, name):
    """Three sequences, one short of the switch, one that crosses it, one beyond; nothing is fed
    twice: a call takes a token a sequence."""
    starts = (20, TRAINED - 3, TRAINED + 50)
    rows = [tokens(start + 8, seed=start) for start in starts]
    width = max(starts)
    first = np.zeros((3, width), np.int64)
    for row, start in zip(range(3), starts, strict=True):
        first[row, :start] = rows[row][:start]
    with opened(lab.packages[name], batch=3) as session:
        session.feed(first, lengths=list(starts), logits="last")
        steps = []
        for step in range(8):
            ids = np.array([[row[start + step]] for row, start in zip(rows, starts, strict=True)])
            steps.append(session.feed(ids)[:, 0])
        assert list(session.seen) == [start + 8 for start in starts]
    for row, start in enumerate(starts):
        lengths = np.concatenate([np.full(start, start), np.arange(start + 1, start + 9)])
        expected = lab.growing(name, rows[row], lengths, causal)[start:]
        assert error(np.stack([logits[row] for logits in steps]), expected) < TOLERANCE


def test_rows_may_plan_lengths_of_their_own(lab):
    name, lengths = "longrope", (40, TRAINED + 30, TARGET)
    rows = [tokens(length, seed=length) for length in lengths]
    ids = np.zeros((3, TARGET), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = rows[row]
    with opened(lab.packages[name], batch=3) as session:
        logits = session.feed(ids, lengths, lengths=list(lengths))
    for row, length in enumerate(lengths):
        assert error(logits[row, :length], lab.whole(name, rows[row])) < TOLERANCE


def test_longrope_over_a_window_switches_at_the_absolute_length(tmp_path):
    """Keys are unrotated and the ring wraps; the list follows the length, not the window."""
    checkpoint = tiny.save(tmp_path / "checkpoint")
    package = tiny.export(
        tiny.source(checkpoint),
        tmp_path / "package",
        max_chunk=8,
        max_batch=1,
        method="longrope",
        sinks=2,
        window=30,
        parameters=LONGROPE,
    )
    manifest = Manifest.load(package)
    (ring, *_) = manifest.layers
    assert (ring.policy, ring.keys, manifest.max_context) == ("bounded", "unrotated", None)
    ids = tokens(3 * ring.capacity, seed=9)
    lengths = np.arange(1, len(ids) + 1)
    lab = Lab.__new__(Lab)
    lab.checkpoint = checkpoint
    # Without an extension of its own the factor of the multiplier is 1; attention_factor rules.
    expected = lab.growing("longrope", ids, lengths, rule_of(ring, TRAINED))
    with opened(package) as session:
        logits = np.concatenate([session.feed(ids[None, i : i + 1])[0] for i in range(len(ids))])
    assert error(logits, expected) < TOLERANCE


def test_the_tables_on_both_sides_of_the_switch_differ(lab):
    """A package that never switched could not pass: the tables are far apart."""
    for name in CASES:
        ids = tokens(TARGET)
        with opened(lab.packages[name]) as session:
            planned = session.feed(ids[None, :TRAINED], TARGET)[0]
            session.reset()
            unplanned = session.feed(ids[None, :TRAINED])[0]
        assert error(planned, unplanned) > 100 * TOLERANCE
