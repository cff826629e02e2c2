"""Bad input to ctx-export: one clear line, exit 2, and no trace of OUT."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ctx_export.cli.export import main
from tests.support.checkpoints import copy_demo, edit_config, split_shards
from tests.support.decoders import Decoder, save_decoder


def export(out: Path, *arguments: str) -> Result:
    options = ["--engine", "none", "--no-validate", "-o", str(out)]
    return CliRunner().invoke(main, [*arguments, *options])


def assert_refused(result: Result, out: Path, *words: str) -> None:
    """Exit 2, one line of error that has `words`, nothing written beside the input."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in lines[0]
    left = [p.name for p in out.parent.iterdir() if p.name.startswith((out.name, f".{out.name}"))]
    assert left == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "yarm", "--target", "1k"], ["yarm", "yarn"]),
        (["--method", "yarn", "--target", "128"], ["128", "256"]),
        (["--method", "yarn", "--target", "lots"], ["lots", "128k"]),
        (["--method", "yarn", "--target", "-5"], ["-5"]),
        (["--method", "yarn", "--target", "1k", "--sinks", "4"], ["sinks is 4", "--window"]),
        (["--method", "yarn", "--target", "1k", "--factor", "0.5"], ["factor", "0.5"]),
        (["--method", "none", "--target", "1k", "--precision", "fp8"], ["fp8", "bf16"]),
        (["/nowhere/at/all", "--method", "yarn", "--target", "1k"], ["/nowhere/at/all"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_cannot_work_are_refused(tmp_path, arguments, words):
    out = tmp_path / "out"
    assert_refused(export(out, *arguments), out, *words)


def yarn(**entries: object) -> dict[str, object]:
    return {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, **entries}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rope_parameters": yarn(rope_type="spiral")}, ["spiral"]),
        ({"rope_parameters": yarn(type="linear")}, ["linear", "yarn"]),
        (
            {"rope_parameters": yarn(), "rope_scaling": {"type": "linear", "factor": 2.0}},
            ["rope_scaling", "rope_parameters"],
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ["factor"]),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, ["factor"]),
        ({"num_hidden_layers": "five"}, ["num_hidden_layers", "five"]),
        ({"model_type": "nothing"}, ["nothing"]),
    ],
    ids=[
        "unknown",
        "type-and-rope-type",
        "two-spellings",
        "no-factor",
        "no-factor-4.x",
        "layers",
        "family",
    ],
)
def test_settings_of_a_checkpoint_that_cannot_work_are_refused(tmp_path, config, words):
    checkpoint = copy_demo(tmp_path, **config)
    out = tmp_path / "out"
    assert_refused(export(out, str(checkpoint), "--target", "1k"), out, *words)


def missing_shard(checkpoint: Path) -> list[str]:
    shard = split_shards(checkpoint)[1]
    shard.unlink()
    return [shard.name, "missing"]


def truncated_shard(checkpoint: Path) -> list[str]:
    path = checkpoint / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    return [path.name, "truncated"]


def truncated_header(checkpoint: Path) -> list[str]:
    os.truncate(checkpoint / "model.safetensors", 5)
    return ["truncated"]


def huge_header(checkpoint: Path) -> list[str]:
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    return ["truncated"]


def wrong_shape(checkpoint: Path) -> list[str]:
    edit_config(checkpoint, intermediate_size=700)
    return ["mlp", "[688, 256]", "[700, 256]"]


def missing_tensor(checkpoint: Path) -> list[str]:
    edit_config(checkpoint, num_hidden_layers=6)
    return ["layers.5"]


def no_weights(checkpoint: Path) -> list[str]:
    (checkpoint / "model.safetensors").unlink()
    return ["model.safetensors", "safetensors"]


@pytest.mark.parametrize(
    "damage",
    [
        missing_shard,
        truncated_shard,
        truncated_header,
        huge_header,
        wrong_shape,
        missing_tensor,
        no_weights,
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path, damage: Callable[[Path], list[str]]):
    checkpoint = copy_demo(tmp_path)
    words = damage(checkpoint)
    out = tmp_path / "out"
    arguments = [str(checkpoint), "--method", "yarn", "--target", "1k"]
    assert_refused(export(out, *arguments), out, *words)


def test_a_decoder_without_rotary_positions_is_refused(tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path / "checkpoint")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "checkpoint"), "--method", "yarn", "--target", "1k"]
    assert_refused(export(out, *arguments), out, "rotary")


@pytest.mark.parametrize(
    ("family", "config", "words"),
    [
        ("hunyuan_v1_dense", {"head_dim": 16}, ["layer 0", "rotating", "after norms"]),
        ("diffllama", {"head_dim": 16}, ["layer 0", "(heads, dim)", "one head dimension"]),
        ("doge", {"head_dim": 16}, ["layer 0", "differs by", "softmax"]),
        ("bert", {"num_key_value_heads": 4}, ["layer 0", "see those after them"]),
    ],
)
def test_a_decoder_that_computes_something_else_is_refused(tmp_path, family, config, words):
    checkpoint = save_decoder(Decoder(name=family, config=config), tmp_path / "checkpoint")
    out = tmp_path / "out"
    arguments = [str(checkpoint), "--method", "yarn", "--target", "1k"]
    assert_refused(export(out, *arguments), out, *words)


def test_an_output_that_exists_is_kept_unless_forced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    arguments = ["--method", "yarn", "--target", "1k"]
    result = export(out, *arguments)
    assert result.exit_code == 2 and "--force" in result.stderr
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    forced = export(out, *arguments, "--force")
    assert forced.exit_code == 0, forced.output
    assert not (out / "mine.txt").exists()
    assert json.loads((out / "manifest.json").read_text())["max_context"] == 1024
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ctx_export.build.weights._convert_tensor", full)
    out = tmp_path / "out"
    arguments = ["--method", "yarn", "--target", "1k", "--precision", "fp32"]
    assert_refused(export(out, *arguments), out, "space")


def test_tensorrt_where_it_is_not_installed_is_refused_before_any_work(tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "tensorrt" else real(name, *a),
    )
    out = tmp_path / "out"
    arguments = ["--method", "yarn", "--target", "1k", "--no-validate", "--engine", "tensorrt"]
    result = CliRunner().invoke(main, [*arguments, "-o", str(out)])
    assert_refused(result, out, "tensorrt", "pip install")
