"""memory, landmark, self-extend and dual-chunk as packages, against a pairwise float64 reference
that has no cache: any split of three sequences side by side, several wraps, blocks of any size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.runtime.errors import ContextLimitError, SessionStateError
from ctx_export.runtime.landmarks import LandmarkTokens
from ctx_export.runtime.slots import held_tokens
from ctx_export.validate import validation
from ctx_export.validate.pairwise import PairwiseReference
from ctx_export.validate.visibility import rule_of
from tests.e2e.test_bounded import CHUNK, TOLERANCE, at_once, fed, one_by_one, ragged
from tests.support import tiny
from tests.support.decoders import DECODERS, save_decoder
from tests.support.feeding import error, opened

TARGET = 320
MARK = 96  # the last token id
UNDECIDED = 2e-6  # of the largest score

# Every policy with blocks, groups and chunks of 1, 7, 16 and 64 within 64 trained positions, or
# 256 scaled to.
SCALED = {"method": "yarn", "factor": 4.0}
CASES: dict[str, dict[str, Any]] = {
    "memory 1": {"memory_block": 1, "memory_tokens": 9, "sinks": 4, "window": 20},
    "memory 7": {"memory_block": 7, "memory_tokens": 3, "sinks": 0, "window": 1},
    "memory 16": {"memory_block": 16, "memory_tokens": 2, "sinks": 4, "window": 17},
    "memory 64": {**SCALED, "memory_block": 64, "memory_tokens": 2, "target": 256},
    # Repeated tokens would have the same key in the first layer.
    "landmark 1": {"landmark_block": 1, "landmark_topk": 9, "sinks": 0, "window": 1, "target": 95},
    "landmark 7": {"landmark_block": 7, "landmark_topk": 3, "window": 17},
    "landmark 16": {"landmark_block": 16, "landmark_topk": 1, "landmark_shared": True},
    "landmark 64": {**SCALED, "landmark_block": 64, "landmark_topk": 1, "window": 20},
    "self-extend 1": {"group": 1, "neighbor": 9, **SCALED, "factor": 5.0},
    "self-extend 7": {"group": 7, "neighbor": 14},
    "self-extend 16": {"group": 16, "neighbor": 16},
    "self-extend 64": {**SCALED, "group": 64, "neighbor": 128},
    "dual-chunk 1": {"chunk": 1},
    "dual-chunk 7": {"chunk": 7},
    "dual-chunk 16": {"chunk": 16},
    "dual-chunk 64": {"chunk": 64},
}


def options(case: str) -> dict[str, Any]:
    given = CASES[case]
    return given if case.startswith("memory") else {"target": TARGET, **given}


class Lab:
    """One checkpoint, its packages and their references."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = tiny.save(root / "checkpoint")
        self._source = tiny.source(self.checkpoint)
        self._packages: dict[str, Path] = {}

    def package(self, **options: Any) -> Path:
        key = json.dumps(options, sort_keys=True)
        if key not in self._packages:
            out = self.root / f"package-{len(self._packages)}"
            made = tiny.export(self._source, out, max_chunk=CHUNK, max_batch=3, **options)
            self._packages[key] = made
        return self._packages[key]

    def reference(self, package: Path, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits [N,V], and which rows [N] are decided."""
        manifest = Manifest.load(package)
        inv_freq = np.asarray(manifest.scaling["inv_freq"], np.float64)
        multiplier = float(manifest.scaling["multiplier"])
        original = int(manifest.model["original_context"])
        model = PairwiseReference(
            self.checkpoint,
            [rule_of(cache, original) for cache in manifest.layers],
            lambda length: (inv_freq, multiplier),
        )
        rows = np.arange(len(ids))
        landmarks = LandmarkTokens.of(manifest.layers)
        if landmarks is not None:
            wide, _, spread = landmarks.spread(ids[None], np.array([len(ids)]), np.array([0]))
            ids, rows = wide[0], spread[0]
        logits = model.logits(ids)[rows]
        margins = np.broadcast_to(model.margins(), len(ids))[rows]
        return logits, margins > UNDECIDED


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("reach"))


pytestmark = pytest.mark.usefixtures("one_thread")


def sequences(package: Path) -> list[np.ndarray]:
    """Three sequences, the longest to the end of a full cache or beyond three wraps of a ring."""
    manifest = Manifest.load(package)
    longest = manifest.max_context or 3 * manifest.cache.capacity + 11
    generator = np.random.default_rng(7)
    lengths = (min(longest, 420), longest // 3 + 5, longest // 2 - 3)
    return [
        np.concatenate([generator.permutation(tiny.VOCAB - 1) for _ in range(5)])[:length]
        for length in lengths
    ]


@pytest.mark.parametrize("case", CASES)
def test_any_split_of_three_sequences_equals_the_reference(lab, case):
    package = lab.package(**options(case))
    rows = sequences(package)
    expected = [lab.reference(package, ids) for ids in rows]
    splits = [at_once, ragged()] + ([one_by_one] if case.endswith(("7", "1")) else [])
    for pieces in splits:
        for logits, (reference, decided) in zip(fed(package, rows, pieces), expected, strict=True):
            assert decided.mean() > 0.98
            assert error(logits[decided], reference[decided]) < TOLERANCE


@pytest.mark.parametrize(
    ("given", "reach"),
    [
        # As many blocks chosen as there are, at their own positions.
        ({**SCALED, "landmark_block": 7, "landmark_topk": 30, "sinks": 4, "window": 3}, 210),
        # One token is a group of itself; one chunk has no other.
        ({**SCALED, "group": 1, "neighbor": 9}, 250),
        ({**SCALED, "chunk": 256}, 250),
        # Blocks of one token, all of them kept: what is evicted is there still.
        ({**SCALED, "memory_block": 1, "memory_tokens": 200, "window": 20, "target": 256}, 220),
    ],
    ids=["landmark", "self-extend", "dual-chunk", "memory"],
)
def test_what_reaches_everything_is_full_attention(lab, given, reach):
    plain = lab.package(method="yarn", factor=4.0, target=256)
    package = lab.package(**{"target": 256, **given})
    ids = np.random.default_rng(2).integers(0, tiny.VOCAB, reach)
    with opened(plain) as full, opened(package) as session:
        assert error(session.feed(ids)[0], full.feed(ids)[0]) < TOLERANCE


def test_the_rules_are_not_one_another(lab):
    """A wrong rule cannot pass: each changes logits by far more than the tolerance."""
    rows = {}
    ids = np.random.default_rng(5).integers(0, tiny.VOCAB - 1, 300)
    for case in ("memory 7", "landmark 7", "self-extend 7", "dual-chunk 7", "dual-chunk 16"):
        with opened(lab.package(**options(case))) as session:
            rows[case] = session.feed(ids)[0, -40:]
    names = list(rows)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert error(rows[name], rows[other]) > 100 * TOLERANCE


@pytest.mark.parametrize(("block", "topk", "length"), [(2, 100, 100), (7, 30, 150)])
def test_landmark_tokens_are_fed_between_a_text_s(lab, block, topk, length):
    """Every block is read, so that no choice can go either way."""
    given = {**SCALED, "landmark_token": MARK, "landmark_block": block, "window": 9, "sinks": 0}
    package = lab.package(target=length, landmark_topk=topk, **given)
    rows = sequences(package)
    for pieces in (at_once, ragged(), one_by_one):
        for logits, ids in zip(fed(package, rows, pieces), rows, strict=True):
            reference, decided = lab.reference(package, ids)
            assert decided.all() and len(reference) == len(ids)
            assert error(logits, reference) < TOLERANCE


def test_a_session_counts_the_tokens_of_a_text(lab):
    given = {**SCALED, "landmark_token": MARK, "landmark_block": 7, "window": 9, "sinks": 0}
    package = lab.package(target=150, landmark_topk=30, **given)
    ids = np.random.default_rng(1).integers(0, tiny.VOCAB - 1, 150)
    with opened(package) as session:
        logits = session.feed(ids)[0]
        assert session.seen.tolist() == [150]
        with pytest.raises(ContextLimitError, match="has 150 tokens and 1 more would pass"):
            session.feed(ids[:1])
        session.truncate(0, 60)
        assert session.seen.tolist() == [60]
        again = session.feed(ids[60:], logits="last")
        assert error(again, logits[-1:]) < TOLERANCE


@pytest.mark.parametrize("case", ["memory 7", "memory 1", "landmark 7", "self-extend 7"])
def test_tokens_can_be_taken_back_and_fed_again(lab, case):
    package = lab.package(**options(case))
    ids = np.random.default_rng(4).integers(0, tiny.VOCAB, 200)
    with opened(package) as session:
        logits = session.feed(ids)[0]
        session.truncate(0, 200 - CHUNK + 1)
        session.feed((ids[200 - CHUNK + 1 :] + 1) % tiny.VOCAB)  # what is overwritten again
        session.truncate(0, 200 - CHUNK + 1)
        assert error(session.feed(ids[200 - CHUNK + 1 :])[0], logits[200 - CHUNK + 1 :]) < 1e-5
        if case.startswith("memory"):
            with pytest.raises(SessionStateError, match="bounded cache no longer has"):
                session.truncate(0, 100)


@pytest.mark.parametrize("case", ["memory 7", "memory 16", "landmark 7", "dual-chunk 7"])
def test_a_cache_put_in_from_outside_is_the_one_that_was_computed(lab, case):
    """The unrotated keys and the values of the reference's own forward, some tokens in a ring."""
    package = lab.package(**options(case))
    ids = np.random.default_rng(4).integers(0, tiny.VOCAB, 250)
    manifest = Manifest.load(package)
    with opened(package) as session:
        expected = session.feed(ids)[0]
        layers = [session.read_cache(layer) for layer in range(tiny.LAYERS)]
    length = 240
    keys, values = [], []
    for cache, (key, value) in zip(manifest.layers, layers, strict=True):
        held = held_tokens(length, cache)
        if case.startswith("memory"):
            # Averaged tokens are gone from the ring: feed them in pieces and collect.
            key, value = collected(package, ids, len(keys))
            key, value = key[:, :, held], value[:, :, held]
        else:
            slots = slots_of(cache, held)
            key, value = key[:, :, slots], value[:, :, slots]
        keys.append(key)
        values.append(value)
    with opened(package) as session:
        session.load_cache(keys, values, length)
        assert error(session.feed(ids[length:])[0], expected[length:]) < TOLERANCE


def slots_of(cache: Any, tokens: np.ndarray) -> np.ndarray:
    from ctx_export.runtime.slots import cache_slots

    return cache_slots(tokens, cache)


def collected(package: Path, ids: np.ndarray, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values [1,H,N,D] of all tokens, read while they were in the ring."""
    cache = Manifest.load(package).layers[layer]
    parts = []
    with opened(package) as session:
        for token in range(len(ids)):
            session.feed(ids[token : token + 1])
            slot = slots_of(cache, np.array([token]))
            parts.append([part[:, :, slot] for part in session.read_cache(layer)])
    keys, values = (np.concatenate(part, axis=2) for part in zip(*parts, strict=True))
    return keys, values


def one_attribute(name: str, by: int) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = package / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        for node in model.graph.node:
            for entry in node.attribute:
                if entry.name == name:
                    entry.i += by
        onnx.save(model, path)

    return change


WRONG = {
    "memory 7": [("window", 1), ("memory", -1)],
    "landmark 7": [("window", 7), ("topk", -1)],
    "self-extend 7": [("neighbor", 7), ("group", 7)],
    "dual-chunk 7": [("reach", -1), ("chunk", 1)],
}


@pytest.mark.parametrize("case", WRONG)
def test_validation_passes_what_is_right_and_finds_what_is_not(lab, case, tmp_path):
    package = lab.package(**options(case))
    report = validation.run(package, lab.checkpoint, budget=160)
    assert report.passed, report.lines()
    assert report.verdict().startswith(f"agrees with PyTorch up to position {report.reach}: ")
    for number, (name, by) in enumerate(WRONG[case]):
        broken = tiny.copy(package, tmp_path / str(number))
        one_attribute(name, by)(broken)
        assert not validation.run(broken, lab.checkpoint, budget=160).passed, name


@pytest.mark.parametrize(
    ("precision", "word", "token"),
    [("fp16", "float16", None), ("fp16", "float16", MARK), ("fp32", "float32", MARK)],
)
def test_choices_that_rounding_turns_are_left_out_and_widen_no_limit(
    precision, word, token, tmp_path
):
    """Equal keys of landmark tokens, or half of the rows' scores, close in float16."""
    checkpoint = tiny.save(tmp_path / "checkpoint", seed=2)
    given = {**options("landmark 7"), **SCALED, "landmark_token": token, "sinks": 0, "window": 9}
    source = tiny.source(checkpoint, precision)
    package = tiny.export(source, tmp_path / "package", max_chunk=CHUNK, **given)
    report = validation.run(package, checkpoint, budget=160)
    assert report.passed, report.lines()
    (left_out,) = report.skipped
    assert left_out.endswith(f"rows whose best blocks score alike in {word}")
    assert max(row.limit for row in report.rows) < 0.02
    probes = {row.position for row in report.rows if row.how == "probe"}
    assert probes if precision == "fp16" else {256, TARGET - 16} <= probes
    one_attribute("topk", -1)(tiny.copy(package, tmp_path / "broken"))
    broken = validation.run(tmp_path / "broken", checkpoint, budget=160)
    assert not broken.passed
    assert any(not row.passed for row in broken.rows if row.how == "probe")


# Learned sinks and windows of their own; caps; layers without positions; one projection of q, k
# and v, of which half turns.
FAMILIES = ("gpt_oss", "gemma2", "smollm3", "phi3")
FAMILY_CASES: dict[str, dict[str, Any]] = {
    "memory": {"memory_block": 5, "memory_tokens": 3, "sinks": 2, "window": 20},
    "landmark": {"landmark_block": 5, "landmark_topk": 2, "window": 20, "target": 160},
    "self-extend": {"group": 4, "neighbor": 16, "target": 160},
    "dual-chunk": {"chunk": 20, "target": 160},
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Any:
    checkpoint = save_decoder(DECODERS[request.param], tmp_path_factory.mktemp("family") / "it")
    return tiny.source(checkpoint)


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_layers_of_other_families_follow_the_rule_or_keep_their_window(family, case, tmp_path):
    package = tiny.export(family, tmp_path / "package", max_chunk=CHUNK, **FAMILY_CASES[case])
    own = [layer.rule == "sliding-window" for layer in Manifest.load(package).layers]
    assert own == [bool(window) for window in family.spec.windows]
    report = validation.run(package, family.checkpoint.directory, budget=100)
    assert report.passed, report.lines()
    assert max(row.max_error for row in report.rows) < TOLERANCE


def test_a_model_with_learned_sinks_has_no_landmark_tokens(tmp_path):
    """gpt-oss: one softmax with a sink and one grouped by blocks exclude each other."""
    source = tiny.source(save_decoder(DECODERS["gpt_oss"], tmp_path / "checkpoint"))
    with pytest.raises(UserError, match=r"learned sink logits.*leave --landmark-token out"):
        tiny.export(source, tmp_path / "package", landmark_token=3, landmark_block=5, target=128)
