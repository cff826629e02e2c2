"""Packages with quantised caches: every policy and type agrees with PyTorch that rounds the same
way, and packages broken in one place do not. Oracles: validation's references, bytes by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ctx_export.build import calibration
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.core.recipe import Recipe
from ctx_export.inspection.package import inspect_package
from ctx_export.pipeline import plan
from ctx_export.runtime.session import open_session
from ctx_export.validate import validation
from tests.support import tiny

CHUNK, TARGET, BUDGET = 16, 256, 160
SINKS, WINDOW = 4, 28
POLICIES: dict[str, dict[str, Any]] = {
    "full": {"method": "yarn", "target": TARGET},
    "streaming": {"cache": "streaming", "sinks": SINKS, "window": WINDOW},
    "dynamic-ntk": {"method": "dynamic-ntk", "target": TARGET},
}
TYPES = {"int8": "int8", "fp8": "float8e4m3fn"}
SLOTS = {"full": TARGET, "streaming": SINKS + WINDOW + CHUNK - 1, "dynamic-ntk": TARGET}


class Lab:
    """One llama, traced once a precision, and its packages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoint = tiny.save(root / "checkpoint")
        self._sources: dict[str, Any] = {}
        self._packages: dict[str, Path] = {}

    def package(self, policy: str, kind: str, precision: str = "fp32") -> Path:
        name = f"{policy}-{kind}-{precision}"
        if precision not in self._sources:
            self._sources[precision] = tiny.source(self.checkpoint, precision)
        if name not in self._packages:
            options = {**POLICIES[policy], "kv_cache_dtype": kind, "max_chunk": CHUNK}
            source = self._sources[precision]
            made = tiny.export(source, self.root / name, max_batch=3, **options)
            self._packages[name] = made
        return self._packages[name]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def validated(package: Path, lab: Lab) -> validation.ValidationReport:
    return validation.run(package, lab.checkpoint, budget=BUDGET)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_good_package_agrees_at_every_position(lab, policy, kind):
    package = lab.package(policy, kind)
    report = validated(package, lab)
    assert report.passed, report.lines()
    # Few of a probe's numbers are rounded, and hardly any lies just between two.
    assert np.median([row.max_error for row in report.rows if row.how == "probe"]) < 5e-5
    loss = report.quantisation
    assert loss is not None and loss.dtype == TYPES[kind]
    assert 1e-4 < loss.mean_error < loss.max_error
    assert "keys and values rounded as the cache does" in report.facts["reference"]
    json.dumps([report.to_json(), report.summary], allow_nan=False)


FAMILIES: dict[str, dict[str, Any]] = {
    "phi3": {  # half of a head turns
        "original_max_position_embeddings": tiny.ORIGINAL_CONTEXT,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": tiny.THETA,
            "partial_rotary_factor": 0.5,
        },
        "hidden_size": 64,
        "pad_token_id": 0,
    },
    "qwen3": {  # a ring beside a full cache
        "use_sliding_window": True,
        "sliding_window": 40,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_agree(tmp_path, family):
    checkpoint = tiny.save(tmp_path / "checkpoint", family=family, **FAMILIES[family])
    options = {"method": "linear", "target": TARGET, "max_chunk": CHUNK, "kv_cache_dtype": "int8"}
    package = tiny.export(tiny.source(checkpoint), tmp_path / "package", **options)
    report = validation.run(package, checkpoint, budget=BUDGET)
    assert report.passed, report.lines()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("policy", POLICIES)
def test_an_element_is_one_byte(lab, policy, kind):
    """2 · layers · KV heads · head_dim · C (FORMULAS section 4), and the session's grows to it."""
    package = lab.package(policy, kind)
    manifest = Manifest.load(package)
    expected = 2 * tiny.LAYERS * tiny.KV_HEADS * tiny.HEAD_DIM * SLOTS[policy]
    assert inspect_package(package)["cache_bytes_per_sequence"] == expected
    assert {t.dtype for t in manifest.io if t.layer >= 0} == {TYPES[kind]}
    with open_session(package) as session:
        session.feed(np.arange(200)[None] % tiny.VOCAB)
        assert session.cache_bytes == expected


@pytest.mark.parametrize("kind", TYPES)
def test_what_a_session_holds_are_numbers_of_the_cache(lab, kind):
    package = lab.package("full", kind)
    scales = Manifest.load(package).cache_scales
    assert scales is not None
    with open_session(package) as session:
        session.feed(np.arange(50)[None])
        for layer, own in enumerate(scales):
            for read, scale in zip(session.read_cache(layer), (own.key, own.value), strict=True):
                elements = read[0, :, :50] / np.array(scale, np.float32)[:, None, None]
                largest = 127 if kind == "int8" else 448
                assert 0.3 * largest < np.abs(elements).max() < 1.001 * largest
                if kind == "int8":
                    np.testing.assert_allclose(elements, np.rint(elements), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("policy", POLICIES)
def test_rows_of_a_batch_are_managed_as_any(lab, policy, kind):
    """Oracle: the same tokens alone. A fork, a truncation and a reset copy bytes."""
    package, tokens = lab.package(policy, kind), np.arange(3, 63)[None] % tiny.VOCAB
    planned = 80
    with open_session(package) as session:
        session.feed(tokens[:, :40], planned)
        expected = session.feed(tokens[:, 40:], planned)
    with open_session(package, batch=3) as session:
        session.feed(np.tile(tokens[:, :40], (3, 1)), planned, lengths=[40, 7, 0])
        session.fork(0, 2)
        session.reset([1])
        session.feed(np.tile(tokens[:, 40:45], (3, 1)), planned, lengths=[0, 0, 5])
        session.truncate(2, 40)
        logits = session.feed(np.tile(tokens[:, 40:], (3, 1)), planned, lengths=[20, 0, 20])
    scale = np.abs(expected).max()
    for row in (0, 2):
        assert np.abs(logits[row] - expected[0]).max() < 1e-4 * scale


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", TYPES)
def test_low_precision_is_held_to_its_rule(lab, kind, precision):
    report = validated(lab.package("streaming", kind, precision), lab)
    assert report.passed, report.lines()


def edit_scale(package: Path, layer: int, part: str, change: Any) -> None:
    """Change a scale of the graph, which the manifest still states as it was."""
    path = package / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    name = f"cache.layer{layer}.{part}_scale"
    (held,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    held.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(held)), name))
    onnx.save(model, path)


BROKEN = {
    "a key's scale of one layer a third too large": (1, "key", lambda s: s * np.float32(1.33)),
    "values of one layer saturated": (0, "value", lambda s: s / np.float32(3)),
    "the scales of two heads exchanged": (1, "value", lambda s: np.ascontiguousarray(s[::-1])),
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("fault", BROKEN)
def test_scales_that_are_not_the_manifest_s_fail(lab, tmp_path, fault, kind):
    layer, part, change = BROKEN[fault]
    package = tiny.copy(lab.package("full", kind), tmp_path / "package")
    edit_scale(package, layer, part, change)
    report = validated(package, lab)
    assert not report.passed, report.lines()


def test_a_cache_of_too_few_levels_fails_by_its_loss_alone(lab, tmp_path, monkeypatch):
    """int8 with numbers -2 to 2 in use: every row still agrees with PyTorch that does the same."""
    chosen = calibration._scales
    monkeypatch.setattr(calibration, "_scales", lambda sizes, kind: chosen(sizes * 64, kind))
    source = tiny.source(lab.checkpoint)
    options = {**POLICIES["full"], "kv_cache_dtype": "int8", "max_chunk": CHUNK}
    package = tiny.export(source, tmp_path / "package", **options)
    report = validated(package, lab)
    assert all(row.passed for row in report.rows)
    assert report.failures == ["the loss by a cache of int8"]


def test_a_text_without_a_tokenizer_is_refused_before_any_work(lab, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("words " * 100)
    recipe = Recipe(model=str(lab.checkpoint), kv_cache_dtype="int8", calibration=text)
    with pytest.raises(UserError, match=r"has no tokenizer\.json: add it, or leave --calibration"):
        plan(recipe)


def test_a_text_that_is_too_short_is_refused_before_any_work(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("words")
    with pytest.raises(UserError, match="give a text of at least 16"):
        plan(Recipe(kv_cache_dtype="int8", calibration=text))
