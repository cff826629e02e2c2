from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ctx_export.cli.inspect import main
from ctx_export.cli.inspect_rows import format_bytes
from ctx_export.core.manifest import CacheInfo, Manifest, TensorInfo

DEMO = Path(__file__).parents[3] / "exporter/ctx_export/demo"
LIBRARY = b"not really a library"


@pytest.fixture
def package(tmp_path) -> Path:
    def info(name: str, role: str, shape: tuple[int | str, ...], layer: int = -1) -> TensorInfo:
        dtype = "int64" if role in ("input_ids", "seen") else "float16"
        return TensorInfo(name=name, dtype=dtype, shape=shape, role=role, layer=layer)

    past = [
        info(f"past_key_values.{n}.key", "past_key", ("batch", 2, "slots", 64), n)
        for n in range(5)
    ]
    model = {
        "family": "llama",
        "layers": 5,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
        "vocab": 2048,
        "original_context": 256,
    }
    scaling = {
        "theta": 10000.0,
        "rotary_dim": 64,
        "multiplier": 1.5,
        "parameters": {"beta_fast": 16.0, "mscale": None},
        "inv_freq": [1.0] * 32,
    }
    (tmp_path / "libctx_plugins.so").write_bytes(LIBRARY)
    (tmp_path / "model.onnx.data").write_bytes(b"x" * 1536)
    Manifest(
        model=model,
        method="yarn",
        scaling=scaling,
        factor=512.0,
        max_context=131072,
        max_batch=2,
        max_chunk=1024,
        layers=(CacheInfo(policy="full", sinks=0, window=0, capacity=131072, keys="rotated"),) * 5,
        precision="fp16",
        io=(info("input_ids", "input_ids", ("batch", "tokens")), *past),
        weights={"files": ["model.onnx.data", "gone.safetensors"], "storage": "linked"},
        generator={"ctx-export": "1"},
        plugins={
            "file": "libctx_plugins.so",
            "sha256": hashlib.sha256(LIBRARY).hexdigest(),
            "operators": ["SinkWindowAttention"],
        },
        engine={"runtime": "tensorrt-rtx", "version": "1.7", "compute_capabilities": ["8.0"]},
        validation={"passed": True, "max_error": 1e-5, "last_position": 99},
    ).save(tmp_path)
    return tmp_path


def rows(*arguments: object) -> dict[str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return {line[:14].strip(): line[15:] for line in result.stdout.splitlines()}


def report(*arguments: object) -> dict:
    result = CliRunner().invoke(main, [*(str(a) for a in arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_package_in_text(package):
    assert rows(package) == {
        "package": str(package),
        "model": "llama, 5 layers, 4 heads on 2, head dimension 64, vocabulary 2048",
        "method": "yarn, factor 512",
        "scaling": "base 10000, rotary dimension 64, multiplier 1.5, beta_fast 16",
        "context": "128k tokens, trained on 256",
        "limits": "2 sequences, 1024 new tokens a call",
        "cache": "full (causal), 131072 slots, sinks 0, window 0, keys rotated, 5 layers",
        # 2 · 5 layers · 2 heads · 64 · 131072 slots · 2 bytes = 335544320
        "KV cache": "320.0 MiB per sequence",
        "precision": "fp16",
        "weights": "linked, 2 files, 1.5 KiB, MISSING: gone.safetensors",
        "engine": "tensorrt-rtx 1.7, compute capability 8.0",
        "plugins": "libctx_plugins.so (SinkWindowAttention), its checksum matches",
        "validation": "agrees with PyTorch to position 99, largest error 1.0e-05 of the "
        "logit scale",
        "input_ids": "input_ids int64 [batch, tokens]",
        "past_key": "past_key_values.0.key float16 [batch, 2, slots, 64] × 5",
    }


def test_a_quantised_cache_is_told_with_its_bytes(package):
    path = package / "manifest.json"
    stated = json.loads(path.read_text())
    for tensor in stated["io"]:
        tensor["dtype"] = "int8" if tensor["role"] == "past_key" else tensor["dtype"]
    stated["kv_cache"] = {
        "dtype": "int8",
        "calibration": "1024 random tokens",
        "layers": [{"key": [1, 1], "value": [1, 1]}] * 5,
    }
    path.write_text(json.dumps(stated))
    told = rows(package)["KV cache"]
    assert told == (
        "160.0 MiB per sequence, int8 with scales per layer and KV head from 1024 random tokens"
    )


def test_package_in_json(package):
    got = report(package)
    assert got["kind"] == "package"
    assert got["cache_bytes_per_sequence"] == 335544320
    assert got["plugins"]["state"] == "matches"
    assert got["weights"]["missing"] == ["gone.safetensors"]
    assert len(got["scaling"]["inv_freq"]) == 32
    assert len(got["io"]) == 6


def test_a_package_for_onnxruntime_genai_says_so(package):
    path = package / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "io_contract": "genai"}))
    told = "onnxruntime-genai's, for its Generator; sessions do not open it"
    assert rows(package)["interface"] == told


def test_a_changed_or_missing_plugin_library_is_told(package):
    library = package / "libctx_plugins.so"
    library.write_bytes(LIBRARY + b"!")
    assert report(package)["plugins"]["state"] == "differs"
    assert "ITS CHECKSUM DIFFERS" in rows(package)["plugins"]
    library.unlink()
    assert report(package)["plugins"]["state"] == "missing"


def test_package_without_engine_plugins_and_validation(package):
    path = package / "manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "engine": None, "plugins": None, "validation": None}))
    got = rows(package)
    assert (got["engine"], got["plugins"], got["validation"]) == ("none", "none", "not validated")


def test_checkpoint_in_text():
    got = rows(DEMO)
    assert got.pop("runtime").endswith("honours rope_type default")
    assert got == {
        "checkpoint": str(DEMO),
        "model": "llama, 5 layers, 4 heads on 2, head dimension 64, vocabulary 2048",
        "context": "256 tokens, trained on 256",
        "precision": "bfloat16",
        "rotation": "base 10000",
        "scaling": "none, factor 1, multiplier 1",
        "weights": "1 file, 7.9 MiB",
        "lost": "nothing",
    }


def checkpoint(directory: Path, **changed) -> Path:
    config = {**json.loads((DEMO / "config.json").read_text()), **changed}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_checkpoint_with_its_own_scaling(tmp_path):
    scaling = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256}
    checkpoint(
        tmp_path,
        rope_parameters=None,
        rope_scaling=scaling,
        max_position_embeddings=4096,
        rope_theta=10000.0,
    )
    got = report(tmp_path, "--runtime", "transformers")
    assert got["rope"]["method"] == "yarn"
    assert got["original_context"] == 256
    assert got["scaling"]["multiplier"] == pytest.approx(1.2773, abs=5e-5)  # FORMULAS.md, s = 16
    assert len(got["scaling"]["inv_freq"]) == 32
    told = rows(tmp_path, "--runtime", "transformers")
    assert told["context"] == "4k tokens, trained on 256"
    assert told["parameters"] == "factor 16"


def test_checkpoint_shards_that_are_missing(tmp_path):
    checkpoint(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"1234")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert report(tmp_path)["weights"] == {
        "files": ["a.safetensors", "b.safetensors"],
        "bytes": 4,
        "missing": ["b.safetensors"],
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": None}, "config.json has num_hidden_layers = None"),
        ({"rope_parameters": {"rope_type": "mrope"}}, "rope_parameters.rope_type is 'mrope'"),
        ({"head_dim": 3}, "the rotary dimension is 3 at head dimension 3"),
    ],
)
def test_checkpoint_that_cannot_be_read(changed, message, tmp_path):
    result = CliRunner().invoke(main, [str(checkpoint(tmp_path, **changed))])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")


def test_what_is_neither(tmp_path):
    for path, message in ((tmp_path, "is neither a package"), (tmp_path / "x", "does not exist")):
        result = CliRunner().invoke(main, [str(path)])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr
    (tmp_path / "config.json").write_text("{")
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 2
    assert "config.json cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 41, "10240.0 GiB"),
    ],
)
def test_bytes_are_read_in_units(count, text):
    assert format_bytes(count) == text
