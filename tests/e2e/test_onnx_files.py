"""ONNX files that PyTorch's exporter wrote go through the command and agree with transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from ctx_export import open_session
from ctx_export.cli.export import main
from tests.support import tiny
from tests.support.feeding import decode_pieces, error, fed
from tests.support.onnx_files import write_decoder

pytestmark = pytest.mark.usefixtures("one_thread")
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": tiny.THETA}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("decoder")
    tiny.save(directory / "checkpoint")
    write_decoder(directory / "checkpoint", directory / "model.onnx", mask=True)
    return directory


def export(decoder: Path, out: Path, *arguments: str) -> Result:
    options = ["--engine", "none", "-o", str(out)]
    return CliRunner().invoke(main, [str(decoder / "model.onnx"), *arguments, *options])


def test_a_file_is_extended_and_agrees_with_transformers(decoder, tmp_path):
    out, reference = tmp_path / "out", decoder / "checkpoint"
    result = export(
        decoder, out, "--method", "yarn", "--target", "256", "--reference", str(reference)
    )
    assert result.exit_code == 0, result.output
    assert "agrees with PyTorch up to position 255" in result.output
    assert "file check: without scaling the rewritten graph computes what" in result.output
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"]["file"] == "model.onnx" and manifest["source"]["opset"] == 23
    assert manifest["validation"]["file_check"]["passed"] is True
    assert manifest["weights"]["storage"] in ("cloned", "copied")

    ids = np.random.default_rng(5).integers(0, tiny.VOCAB, 200)
    model = tiny.load(reference, {**YARN, "original_max_position_embeddings": 64})
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    with open_session(out, threads=1) as session:
        assert error(fed(session, ids, decode_pieces(len(ids), 64)), expected) < 1e-4
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == ["out"]


def test_without_a_reference_the_file_itself_is_the_judge(decoder, tmp_path):
    out = tmp_path / "out"
    result = export(
        decoder, out, "--method", "none", "--target", "128", "--original-context", "64"
    )
    assert result.exit_code == 0, result.output
    assert "not compared with PyTorch: no --reference was given" in result.output
    report = json.loads((out / "report.json").read_text())
    assert report["passed"] is True
    assert 0 < report["file_check"]["errors"]["one call"] < 1e-5
    ids = np.random.default_rng(6).integers(0, tiny.VOCAB, 100)
    with torch.no_grad():
        expected = tiny.load(decoder / "checkpoint")(torch.from_numpy(ids)[None]).logits[0].numpy()
    with open_session(out, threads=1) as session:
        assert error(fed(session, ids, [30, 1]), expected) < 1e-4


def test_a_graph_that_was_rewritten_wrongly_fails_the_file_check(decoder, tmp_path, monkeypatch):
    from ctx_export.build import model as build

    rewritten = build.rewritten

    def damaged(source, plan):
        made = rewritten(source, plan)
        node = next(node for node in made.graph if node.op_type == "SinkWindowAttention")
        node.attributes["scale"] = type(node.attributes["scale"])(
            "scale", node.attributes["scale"].type, 1.01 * node.attributes["scale"].as_float()
        )
        return made

    monkeypatch.setattr(build, "rewritten", damaged)
    result = export(decoder, tmp_path / "out", "--method", "none", "--original-context", "64")
    assert result.exit_code == 1
    assert "DOES NOT COMPUTE WHAT model.onnx does" in result.output
    assert "does not agree with model.onnx" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp16"], ["precision is fp16", "computes in fp32"]),
        (["--kv-cache-dtype", "int8"], ["kv_cache_dtype is int8", "--reference"]),
        (["--reference", "/nowhere/at/all"], ["/nowhere/at/all"]),
        (["--reference", "other.onnx"], ["other.onnx", "checkpoint"]),
    ],
    ids=["precision", "quantised-cache", "no-reference", "onnx-reference"],
)
def test_options_that_cannot_work_with_a_file_are_refused(decoder, tmp_path, arguments, words):
    common = ["--method", "yarn", "--target", "256", "--original-context", "64"]
    result = export(decoder, tmp_path / "out", *common, *arguments)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reference_of_a_checkpoint_is_refused(decoder, tmp_path):
    checkpoint = str(decoder / "checkpoint")
    result = CliRunner().invoke(
        main, [checkpoint, "--reference", checkpoint, "--target", "256", "-o", str(tmp_path / "o")]
    )
    assert result.exit_code == 2 and "its own reference" in result.stderr


def test_a_damaged_file_writes_nothing(decoder, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    content = (decoder / "model.onnx").read_bytes()
    (inside / "model.onnx").write_bytes(content.replace(b"model.onnx.data", b"../../x/passwd"))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    result = export(inside, tmp_path / "out", "--method", "none", "--original-context", "64")
    assert result.exit_code == 2 and result.stderr.startswith("error: ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_second_export_of_a_file_works(decoder, tmp_path):
    for name in ("first", "second"):
        options = ["--method", "none", "--original-context", "64", "--no-validate"]
        assert export(decoder, tmp_path / name, *options).exit_code == 0
