"""`ctx-inspect` on ONNX files that torch.onnx wrote, with and without the config they are of."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ctx_export.cli.inspect import main
from tests.support import tiny

PLAIN = {"rope_type": "default", "rope_theta": tiny.THETA}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "rope_theta": tiny.THETA,
    "original_max_position_embeddings": tiny.ORIGINAL_CONTEXT,
}


def export(checkpoint: Path, output: Path) -> Path:
    """The checkpoint as torch.onnx writes it, its weights beside the graph."""
    import torch

    model = tiny.load(checkpoint)
    model.config.use_cache = False

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> Any:
            return self.model(input_ids, position_ids=position_ids, use_cache=False).logits

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about torch
        torch.onnx.export(
            Logits().eval(),
            (torch.zeros(2, 8, dtype=torch.int64), torch.arange(8).expand(2, 8)),
            output,
            input_names=["input_ids", "position_ids"],
            output_names=["logits"],
            dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
            dynamo=True,
            opset_version=23,
            external_data=True,
            verbose=False,
        )
    return output


@pytest.fixture(scope="module", params=["default", "yarn"])
def exported(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """How it is scaled, the checkpoint, and the ONNX file made from it."""
    root = tmp_path_factory.mktemp(request.param)
    rope = YARN if request.param == "yarn" else PLAIN
    settings = {"rope_parameters": rope, "max_position_embeddings": 256, "num_hidden_layers": 1}
    checkpoint = tiny.save(root / "checkpoint", **settings)
    (root / "onnx").mkdir()
    return request.param, checkpoint, export(checkpoint, root / "onnx" / "model.onnx")


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def report(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(inspect(*arguments, "--json").stdout)
    return found


def test_sites_and_tables_are_those_of_the_model(exported):
    """Oracle: transformers' inv_freq and attention_scaling of the same checkpoint."""
    _, checkpoint, file = exported
    found = report(file)
    rotary = tiny.load(checkpoint).model.rotary_emb
    (table,) = found["tables"]
    np.testing.assert_allclose(table["inv_freq"], rotary.inv_freq.numpy(), rtol=2e-5)
    assert table["multiplier"] == pytest.approx(rotary.attention_scaling, rel=2e-5)
    assert table["layers"] == [0]
    sizes = {(layer["heads"], layer["kv_heads"], layer["head_dim"]) for layer in found["layers"]}
    assert sizes == {(tiny.HEADS, tiny.KV_HEADS, tiny.HEAD_DIM)}
    assert {layer["layout"] for layer in found["layers"]} == {"half-split pairs"}


def test_the_header_tells_who_wrote_it_and_where_weights_are(exported):
    _, _, file = exported
    found = report(file)
    assert found["producer"].startswith("pytorch")
    assert ["", 23] in found["opsets"]
    assert found["cache"] == "no inputs"
    assert found["weights"]["external"]["files"] == ["model.onnx.data"]
    size = (file.parent / "model.onnx.data").stat().st_size
    assert found["weights"]["external"]["bytes"] == size


def test_a_graph_that_keeps_its_settings_exits_with_nothing(exported):
    kind, checkpoint, file = exported
    result = inspect(file, "--reference", checkpoint)
    assert result.exit_code == 0, result.output
    told = "yarn" if kind == "yarn" else "none"
    assert f"are those of checkpoint/config.json ({told})" in result.stdout
    assert result.stdout.splitlines()[-1] == "lost           nothing"


def test_a_graph_that_lost_its_scaling_exits_with_one(exported, tmp_path):
    """A plain graph beside a config.json that says yarn, as an exporter leaves it that drops what
    it does not know; and the other way round."""
    kind, checkpoint, file = exported
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(file.parent / name, tmp_path)
    config = json.loads((checkpoint / "config.json").read_text())
    config["rope_parameters"] = PLAIN if kind == "yarn" else YARN
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = inspect(tmp_path / "model.onnx")
    assert result.exit_code == 1, result.output
    assert result.stdout.splitlines()[-1].endswith("does not rotate as config.json means")
    if kind == "default":
        assert "dropped the yarn scaling" in result.stdout
        assert f"plain table of base {tiny.THETA:g}" in result.stdout
    else:
        assert "rotates by another table" in result.stdout


def test_what_a_method_would_change_on_a_file(exported):
    _, checkpoint, file = exported
    ask = (file, "--reference", checkpoint, "--method", "linear", "--factor", "8")
    change = report(*ask)["change"]
    lowest = tiny.THETA ** (2 / tiny.HEAD_DIM - 1) / 8
    assert change["after"]["lowest"] == pytest.approx(lowest, rel=1e-6)
    assert change["config"]["rope_parameters"]["factor"] == 8.0


def test_a_file_alone_lacks_its_trained_context_until_it_is_given(exported):
    kind, _, file = exported
    needed = "no plain base explains" if kind == "yarn" else "give --original-context"
    assert needed in report(file)["export"]
    if kind == "default":
        ask = ("--original-context", "64", "--method", "yarn", "--factor", "4")
        change = report(file, *ask)["change"]
        assert change["after"]["multiplier"] == pytest.approx(1.1386294361)
        assert change["inexpressible"] == "no config.json belongs to the file"


def test_a_damaged_file_exits_with_two(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07not a model")
    result = inspect(tmp_path / "model.onnx")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
