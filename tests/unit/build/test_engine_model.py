"""What an engine is built from: the oracle is onnxruntime's run of the package's own model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from ctx_export.build.engine_model import engine_model
from ctx_export.core.errors import UserError
from tests.support.contrib_graphs import parse, run

B, S, WIDTH, ROWS = 2, 5, 64, 128
GENERATOR = np.random.default_rng(10)
FEEDS = {"x": GENERATOR.normal(size=(B, S, WIDTH)).astype("f")}
HELD = {
    "packed": GENERATOR.integers(0, 256, (ROWS, 2, 16), dtype=np.uint8),
    "scales": GENERATOR.uniform(0.01, 0.1, ROWS * 2).astype("f"),
    "plain": GENERATOR.normal(size=(ROWS, 32)).astype("f"),
}
QUANTISED = f"com.microsoft.MatMulNBits<K={WIDTH},N={ROWS},bits=4,block_size=32>(x,packed,scales)"


def written(directory: Path, body: str) -> Path:
    """The graph in `directory`, its weights in a file that has a second name as a package's do."""
    path = directory / "model.onnx"
    model = parse(body, FEEDS, HELD)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    os.link(directory / "weights", directory / "weights.of.the.source")
    return path


def loaded(path: Path) -> onnx.ModelProto:
    """The model with its weights inside; onnx refuses to read files of two names."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            stored = (path.parent / entries["location"]).read_bytes()
            start = int(entries.get("offset", 0))
            tensor.raw_data = stored[start : start + int(entries["length"])]
            del tensor.external_data[:]
            tensor.data_location = onnx.TensorProto.DEFAULT
    return model


def test_a_model_of_standard_operators_is_taken_as_it_is(tmp_path: Path) -> None:
    model = written(tmp_path, "y = MatMul(x, x)")
    before = sorted(tmp_path.iterdir())
    with engine_model(model) as path:
        assert path == model
        assert sorted(tmp_path.iterdir()) == before


def test_a_copy_in_standard_operators_lasts_while_it_is_used(tmp_path: Path) -> None:
    model = written(tmp_path, f"p = {QUANTISED} y = MatMul(p, plain)")
    before = sorted(tmp_path.iterdir())
    with engine_model(model) as path:
        assert path.parent == model.parent and path != model
        copy = loaded(path)
        assert {node.domain for node in copy.graph.node} == {""}
        kept = onnx.load(path, load_external_data=False).graph.initializer
        places = {t.name: {e.key: e.value for e in t.external_data} for t in kept}
        assert places["plain"]["location"] == "weights"
        np.testing.assert_allclose(run(copy, FEEDS), run(loaded(model), FEEDS), atol=2e-4)
    assert sorted(tmp_path.iterdir()) == before


def test_what_has_no_standard_form_leaves_nothing_behind(tmp_path: Path) -> None:
    model = written(tmp_path, f"p = {QUANTISED} y = com.microsoft.QMoE(p)")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="QMoE"), engine_model(model):
        pass
    assert sorted(tmp_path.iterdir()) == before
