"""What is known about the model of an ONNX file: from its reference, a config beside it,
onnxruntime-genai's file, or the graph alone. The files are PyTorch's own exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.frontends.onnx_file import read
from ctx_export.frontends.onnx_tables import agrees, plain_base
from ctx_export.patterns.rotary import RotaryTable
from tests.support import tiny
from tests.support.checkpoints import edit_config
from tests.support.onnx_files import write_decoder

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": tiny.THETA}
SHAPE = ("layers", "heads", "kv_heads", "head_dim", "vocab", "precision", "windows")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("plain")
    tiny.save(directory / "checkpoint")
    write_decoder(directory / "checkpoint", directory / "model.onnx")
    return directory


@pytest.fixture(scope="module")
def scaled(tmp_path_factory) -> Path:
    """A file whose own rotation is scaled by yarn."""
    directory = tmp_path_factory.mktemp("scaled")
    tiny.save(directory / "checkpoint", rope_parameters=YARN, max_position_embeddings=256)
    write_decoder(directory / "checkpoint", directory / "model.onnx")
    return directory


def beside(source: Path, directory: Path, **files: object) -> Path:
    """A copy of the file in `directory` with JSON files beside it."""
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copyfile(source / name, directory / name)
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory / "model.onnx"


def test_the_reference_states_the_model(plain):
    source = read(plain / "model.onnx", str(plain / "checkpoint"))
    assert source.checkpoint is not None and source.spec == source.checkpoint.spec
    assert source.file is not None and source.file.opset == 23
    assert source.file.producer.startswith("pytorch") and not source.file.quantised


def test_a_config_beside_the_file_serves_as_well(plain, tmp_path):
    config = json.loads((plain / "checkpoint" / "config.json").read_text())
    source = read(beside(plain, tmp_path, config=config))
    assert source.checkpoint is None
    assert source.spec == read(plain / "model.onnx", str(plain / "checkpoint")).spec


def test_the_graph_alone_states_all_but_the_trained_context(plain):
    expected = read(plain / "model.onnx", str(plain / "checkpoint")).spec
    spec = read(plain / "model.onnx", original_context=64).spec
    assert [getattr(spec, name) for name in SHAPE] == [getattr(expected, n) for n in SHAPE]
    assert (spec.rope.method, spec.rope.theta) == ("none", tiny.THETA)
    assert spec.original_context == 64
    with pytest.raises(UserError, match="--original-context"):
        read(plain / "model.onnx")


def test_genai_config_states_the_trained_context_and_the_tokens(plain, tmp_path):
    model = {"type": "llama", "context_length": 64, "bos_token_id": 1, "eos_token_id": [2, 3]}
    spec = read(beside(plain, tmp_path, genai_config={"model": model})).spec
    assert (spec.family, spec.original_context) == ("llama", 64)
    assert (spec.bos_token_id, spec.eos_token_ids) == (1, (2, 3))


def test_a_scaled_table_needs_a_config(scaled):
    with pytest.raises(UserError, match=r"no plain base explains.*--reference"):
        read(scaled / "model.onnx", original_context=64)
    source = read(scaled / "model.onnx", str(scaled / "checkpoint"))
    assert source.spec.rope.method == "yarn" and source.spec.rope.parameters["factor"] == 4.0


def test_scaling_that_the_exporter_dropped_is_an_error(plain, scaled):
    with pytest.raises(UserError) as caught:
        read(plain / "model.onnx", str(scaled / "checkpoint"))
    for word in ("layer 0", "plain table of base 10000", "dropped", "yarn"):
        assert word in str(caught.value)


def test_another_base_than_the_config_s_is_an_error(plain, tmp_path):
    shutil.copytree(plain / "checkpoint", tmp_path / "checkpoint")
    rope = {"rope_type": "default", "rope_theta": 20000.0}
    edit_config(tmp_path / "checkpoint", rope_parameters=rope)
    with pytest.raises(
        UserError, match=r"layer 0 rotates.*frequency 7 is 0\.0003.* by the config"
    ):
        read(plain / "model.onnx", str(tmp_path / "checkpoint"))


def test_a_config_of_another_depth_is_an_error(plain, tmp_path):
    shutil.copytree(plain / "checkpoint", tmp_path / "checkpoint")
    edit_config(tmp_path / "checkpoint", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"2 attentions, .*states 3 layers"):
        read(plain / "model.onnx", str(tmp_path / "checkpoint"))


def test_a_broken_config_beside_the_file_is_an_error(plain, tmp_path):
    path = beside(plain, tmp_path)
    (tmp_path / "genai_config.json").write_text("{")
    with pytest.raises(UserError, match=r"genai_config\.json cannot be read"):
        read(path, original_context=64)


def table(base: float, count: int = 32, scale: float = 1.0) -> RotaryTable:
    inv_freq = scale * base ** -(np.arange(count) / count)
    return RotaryTable(inv_freq=inv_freq.astype(np.float32).astype(np.float64), multiplier=1.0)


@pytest.mark.parametrize("base", [1e4, 5e5, 1e6, 150000.0, 10240.5])
def test_a_plain_base_is_read_off_a_table(base):
    assert plain_base(table(base), "fp32") == base


def test_interpolated_and_multiplied_tables_have_no_plain_base():
    assert plain_base(table(1e4, scale=0.25), "fp32") is None
    stretched = RotaryTable(inv_freq=table(1e4).inv_freq, multiplier=1.1)
    assert plain_base(stretched, "fp32") is None


def test_a_table_agrees_to_the_accuracy_of_its_precision():
    one, other = table(1e4), table(1e4).inv_freq * 1.0005
    assert not agrees(one, other, 1.0, "fp32") and agrees(one, other, 1.0, "fp16")
    assert not agrees(one, one.inv_freq[:-1], 1.0, "fp16")
