"""Bounded caches against a pairwise float64 reference that has no cache, over several wraps.

The reference re-assigns positions by cache slot, query after query, as the StreamingLLM paper
describes (validate.pairwise); packages rotate each key once, at its absolute position.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo, Manifest
from ctx_export.runtime.errors import SessionStateError
from ctx_export.validate.pairwise import PairwiseReference
from ctx_export.validate.visibility import Group, Rule, lm_infinite, rule_of
from tests.support import tiny
from tests.support.feeding import error, opened

TOLERANCE = 1e-4  # of the logit scale
CHUNK = 8
SINKS, WINDOWS = (0, 1, 4), (1, 17, 252)


def by_cache_slot(query: int, *, sinks: int, window: int) -> tuple[Group, ...]:
    """The tokens of a cache of sinks and window, in order, at the positions of their slots."""
    recent = np.arange(max(sinks, query - window + 1), query + 1)
    held = np.concatenate([np.arange(min(sinks, query + 1)), recent])
    return (Group(keys=held, positions=np.arange(len(held)), query_position=len(held) - 1),)


def slot_rule(cache: CacheInfo, original: int) -> Rule:
    if cache.rule != "streaming":
        return rule_of(cache, original)
    return lambda query: by_cache_slot(query, sinks=cache.sinks, window=cache.window)


class Lab:
    """One checkpoint, its packages by what they are made with, and their references."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = tiny.save(root / "checkpoint")
        self._source = tiny.source(self.checkpoint)
        self._packages: dict[Any, Path] = {}
        self._logits: dict[Any, np.ndarray] = {}

    def package(self, **options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in self._packages:
            out = self.root / f"package-{len(self._packages)}"
            made = tiny.export(self._source, out, max_chunk=CHUNK, max_batch=3, **options)
            self._packages[key] = made
        return self._packages[key]

    def reference(self, package: Path, ids: np.ndarray) -> np.ndarray:
        key = (package, ids.tobytes())
        if key not in self._logits:
            manifest = Manifest.load(package)
            inv_freq = np.asarray(manifest.scaling["inv_freq"], np.float64)
            multiplier = float(manifest.scaling["multiplier"])
            original = int(manifest.model["original_context"])
            model = PairwiseReference(
                self.checkpoint,
                [slot_rule(cache, original) for cache in manifest.layers],
                lambda length: (inv_freq, multiplier),
            )
            self._logits[key] = model.logits(ids)
        return self._logits[key]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("bounded"))


def sequences(package: Path) -> list[np.ndarray]:
    """Three sequences of different length, the longest beyond three wraps of the ring."""
    capacity = Manifest.load(package).cache.capacity
    rng = np.random.default_rng(7)
    lengths = (3 * capacity + 11, capacity + 5, 2 * capacity - 3)
    return [rng.integers(0, tiny.VOCAB, length) for length in lengths]


def fed(package: Path, rows: list[np.ndarray], pieces: Any) -> list[np.ndarray]:
    """Logits of all rows fed side by side; `pieces(left)` says how many tokens each row gets."""
    longest = max(map(len, rows))
    parts: list[list[np.ndarray]] = [[] for _ in rows]
    done = np.zeros(len(rows), np.int64)
    with opened(package, batch=len(rows)) as session:
        while (done < [len(row) for row in rows]).any():
            left = np.array([len(row) for row in rows]) - done
            counts = np.minimum(pieces(left), left)
            ids = np.zeros((len(rows), max(1, int(counts.max()))), np.int64)
            for row, count in enumerate(counts):
                ids[row, :count] = rows[row][done[row] : done[row] + count]
            logits = session.feed(ids, lengths=counts.tolist())
            for row, count in enumerate(counts):
                parts[row].append(logits[row, :count])
            done += counts
        assert done.max() == longest
    return [np.concatenate(part) for part in parts]


def at_once(left: np.ndarray) -> np.ndarray:
    return left


def one_by_one(left: np.ndarray) -> np.ndarray:
    return np.ones_like(left)


def ragged() -> Any:
    rng = np.random.default_rng(3)
    return lambda left: rng.integers(0, 2 * CHUNK + 4, len(left))


def assert_agrees(lab: Lab, package: Path, pieces: Any) -> None:
    rows = sequences(package)
    for logits, ids in zip(fed(package, rows, pieces), rows, strict=True):
        assert error(logits, lab.reference(package, ids)) < TOLERANCE


def streaming_options(sinks: int, window: int) -> dict[str, Any]:
    return {"method": "streaming", "sinks": sinks, "window": window}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sinks", SINKS)
@pytest.mark.parametrize("how", ["at once", "one by one", "ragged"])
def test_streaming_equals_positions_by_cache_slot(lab, sinks, window, how):
    package = lab.package(**streaming_options(sinks, window))
    pieces = {"at once": at_once, "one by one": one_by_one, "ragged": ragged()}[how]
    assert_agrees(lab, package, pieces)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "sliding-window", "window": 21},
        {"method": "lm-infinite", "sinks": 3, "window": 40},
        {"method": "yarn", "sinks": 4, "window": 124},
        {"method": "linear", "window": 96},
        {"method": "ntk", "sinks": 2, "window": 30, "target": 256},
        {"method": "llama3", "sinks": 1, "window": 70, "target": 128, "parameters": {
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        }},
    ],
    ids=lambda options: options["method"],
)  # fmt: skip
def test_other_policies_and_tables_equal_their_rules(lab, options):
    assert_agrees(lab, lab.package(**options), ragged())


def test_the_policies_are_not_one_another(lab):
    """A wrong rule cannot pass: each changes logits by far more than the tolerance."""
    rows = {}
    for options in (
        streaming_options(4, 60),
        {"method": "sliding-window", "window": 64},
        {"method": "lm-infinite", "sinks": 4, "window": 60},
        streaming_options(1, 63),
        streaming_options(4, 59),
    ):
        package = lab.package(**options)
        with opened(package) as session:
            ids = np.random.default_rng(5).integers(0, tiny.VOCAB, 300)
            rows[str(options)] = session.feed(ids[None])[0, -40:]
    names = list(rows)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            if "lm-infinite" in name + other and "4" in name and "'window': 60" in name + other:
                continue  # trained on 64 tokens, both meet the sinks at position 63
            assert error(rows[name], rows[other]) > 100 * TOLERANCE


def test_visible_sets_of_a_small_case_written_by_hand():
    """Two sinks and a window of three: (query, tokens seen, their positions, the query's)."""
    expected = [
        (0, [0], [0], 0),
        (1, [0, 1], [0, 1], 1),
        (2, [0, 1, 2], [0, 1, 2], 2),
        (4, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 4),
        (5, [0, 1, 3, 4, 5], [0, 1, 2, 3, 4], 4),
        (9, [0, 1, 7, 8, 9], [0, 1, 2, 3, 4], 4),
    ]
    for query, tokens, positions, own in expected:
        (group,) = by_cache_slot(query, sinks=2, window=3)
        assert (group.keys.tolist(), group.positions.tolist()) == (tokens, positions)
        assert group.query_position == own


def test_distances_to_the_sinks_stop_at_the_limit():
    """LM-infinite with two sinks, a window of three and a limit of six, at query 9."""
    first, recent = lm_infinite(9, sinks=2, window=3, limit=6)
    assert (first.keys.tolist(), first.positions.tolist()) == ([0, 1], [0, 1])
    assert first.query_position == 5
    assert (recent.keys.tolist(), recent.query_position) == ([7, 8, 9], 9)


def test_memory_does_not_grow(lab):
    with opened(lab.package(**streaming_options(4, 17))) as session:
        before = session.cache_bytes
        session.feed(np.zeros((1, 2000), np.int64), logits="last")
        assert session.cache_bytes == before
        # 2 layers · 2 · 2 KV heads · 16 · 4 bytes · (4 + 17 + 8 - 1) slots
        assert before == 2 * 2 * 2 * 16 * 4 * 28


def test_tokens_are_taken_back_as_far_as_the_spare_slots_reach(lab):
    package = lab.package(**streaming_options(4, 17))
    ids = np.random.default_rng(1).integers(0, tiny.VOCAB, 200)
    expected = lab.reference(package, ids)
    with opened(package) as session:
        session.feed(ids[None, :150], logits="last")
        session.truncate(0, 150 - (CHUNK - 1))
        again = session.feed(ids[None, 150 - (CHUNK - 1) :])[0]
        assert error(again, expected[150 - (CHUNK - 1) :]) < TOLERANCE
        with pytest.raises(SessionStateError, match="spare slots reach back to"):
            session.truncate(0, 100)
        assert list(session.seen) == [200]
        session.reset([0])
        assert error(session.feed(ids[None])[0], expected) < TOLERANCE


def test_rows_are_reset_and_wrap_on_their_own(lab):
    package = lab.package(**streaming_options(4, 17))
    rng = np.random.default_rng(2)
    first, second = (rng.integers(0, tiny.VOCAB, 120) for _ in range(2))
    with opened(package, batch=2) as session:
        session.feed(np.stack([first, second]), logits="last")
        session.reset([0])
        ids = np.stack([second[:60], first[:60]])
        logits = session.feed(ids)
    assert error(logits[0], lab.reference(package, second)[:60]) < TOLERANCE
    joined = np.concatenate([second, first[:60]])
    assert error(logits[1], lab.reference(package, joined)[120:]) < TOLERANCE


def test_layers_with_windows_of_their_own_are_rings_beside_full_layers(tmp_path):
    """Oracle: transformers' own model, whose cache slides by itself."""
    import torch

    window = 24
    checkpoint = tiny.save(
        tmp_path / "checkpoint",
        family="qwen3",
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=window,
        use_sliding_window=True,
        max_position_embeddings=256,
    )
    package = tiny.export(
        tiny.source(checkpoint), tmp_path / "package", target=256, max_chunk=CHUNK, max_batch=2
    )
    manifest = Manifest.load(package)
    assert [c.policy for c in manifest.layers] == ["bounded", "full"]
    assert manifest.layers[0].capacity == window + CHUNK - 1 and manifest.max_context == 256
    ids = np.random.default_rng(4).integers(0, tiny.VOCAB, 200)
    with torch.inference_mode():
        expected = tiny.load(checkpoint)(torch.from_numpy(ids[None])).logits[0].numpy()
    for pieces in (at_once, one_by_one, ragged()):
        (logits,) = fed(package, [ids], pieces)
        assert error(logits, expected) < TOLERANCE
    with opened(package) as session, pytest.raises(UserError, match="256"):
        session.feed(np.zeros((1, 257), np.int64))
