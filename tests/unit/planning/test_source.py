"""Where a config.json and the bytes of its weights come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ctx_export import demo
from ctx_export.core.errors import UserError
from ctx_export.planning.source import read_source
from ctx_export.planning.weights import Origin, Weights, package_weights
from tests.support.checkpoints import copy_demo, split_shards
from tests.unit.planning.configs import LLAMA2_70B, write

DEMO_PARAMETERS = 4152064


def weights(model: str, precision: str | None = None) -> Weights:
    source = read_source(model, precision)
    own = source.spec.precision
    return package_weights(source.parameters, source.stored, own, precision or own)


def test_the_demo_is_read_from_its_headers() -> None:
    """The file is 8 bytes, a header of the stated length, and the weights."""
    found = weights("demo")
    path = demo.path() / "model.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert found.bytes == path.stat().st_size - 8 - header == 2 * DEMO_PARAMETERS
    assert found.origin is Origin.HEADERS
    assert read_source("demo").parameters.total == DEMO_PARAMETERS


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_another_precision_has_other_bytes(precision: str, size: int) -> None:
    assert weights("demo", precision).bytes == size * DEMO_PARAMETERS


def test_what_is_stored_counts_as_it_is(tmp_path: Path) -> None:
    """A checkpoint may hold what the formula has not: here a buffer, in another type."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    checkpoint = copy_demo(tmp_path)
    tensors = load_file(checkpoint / "model.safetensors")
    more = {"model.rotary.inv_freq": np.ones(32, np.float32), "model.ids": np.ones(3, np.int64)}
    save_file({**tensors, **more}, checkpoint / "model.safetensors")
    found = weights(str(checkpoint))
    assert found.numbers == DEMO_PARAMETERS + 32
    assert found.bytes == 2 * (DEMO_PARAMETERS + 32) + 3 * 8
    assert weights(str(checkpoint), "fp32").bytes == 4 * (DEMO_PARAMETERS + 32) + 3 * 8


def test_shards_of_an_index_are_read(tmp_path: Path) -> None:
    checkpoint = copy_demo(tmp_path)
    split_shards(checkpoint)
    found = weights(str(checkpoint))
    assert (found.bytes, found.origin) == (2 * DEMO_PARAMETERS, Origin.HEADERS)
    assert weights(str(checkpoint / "config.json")) == found


def test_an_index_alone_states_the_bytes(tmp_path: Path) -> None:
    checkpoint = copy_demo(tmp_path)
    (checkpoint / "model.safetensors").unlink()
    stated = {"metadata": {"total_size": 12345678}, "weight_map": {"a": "model-1.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(stated))
    found = weights(str(checkpoint))
    assert (found.bytes, found.origin) == (12345678, Origin.INDEX)
    assert weights(str(checkpoint), "fp32").bytes == 2 * 12345678


@pytest.mark.parametrize("index", [None, {"weight_map": {}}])
def test_without_shards_they_are_counted(tmp_path: Path, index: Any) -> None:
    checkpoint = copy_demo(tmp_path)
    (checkpoint / "model.safetensors").unlink()
    if index is not None:
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    found = weights(str(checkpoint))
    assert (found.bytes, found.origin) == (2 * DEMO_PARAMETERS, Origin.COUNTED)


def test_a_file_of_another_name_has_no_weights(tmp_path: Path) -> None:
    checkpoint = copy_demo(tmp_path)
    other = shutil.copyfile(checkpoint / "config.json", checkpoint / "tiny.json")
    assert read_source(str(other)).stored is None
    assert read_source(str(other)).name == "tiny"


def test_an_unknown_family_is_estimated(tmp_path: Path) -> None:
    model = write(tmp_path / "new.json", LLAMA2_70B, model_type="llama-of-tomorrow")
    assert weights(model).origin is Origin.ESTIMATED
    assert not weights(model).exact


def test_a_config_without_a_type_is_told(tmp_path: Path) -> None:
    model = write(tmp_path / "some.json", LLAMA2_70B, torch_dtype=None)
    source = read_source(model)
    assert source.spec.precision == "fp32"
    assert source.notes == ("config.json states no dtype: fp32 is assumed, give --precision",)
    assert read_source(model, "bf16").notes == ()


def test_a_type_that_no_weight_has_gives_way(tmp_path: Path) -> None:
    """The demo is stored in bfloat16, whatever config.json says."""
    checkpoint = copy_demo(tmp_path, dtype="float32")
    assert read_source(str(checkpoint)).spec.precision == "bf16"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kv_lora_rank": 512}, "config.json has kv_lora_rank = 512"),
        ({"alibi": True}, "config.json has alibi = true"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method gptq"),
        ({"num_hidden_layers": None}, "num_hidden_layers = None"),
        ({"rope_scaling": {"type": "new", "factor": 2}}, "new"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        read_source(write(tmp_path / "some.json", LLAMA2_70B, **changes))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("nothing-there", "name a checkpoint directory, a config.json, a hub id"),
        ("./nothing.json", "name a checkpoint directory, a config.json, a hub id"),
        ("some/model.onnx", "is an ONNX file"),
        ("owner/name", "could not be downloaded from the hub"),
    ],
)
def test_what_is_not_there_is_refused(model: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        read_source(model)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        read_source(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"broken\.json"):
        read_source(str(path))


def test_the_hub_is_asked_for_two_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def download(model: str, name: str) -> str:
        asked.append((model, name))
        if name != "config.json":
            raise OSError("404")
        return write(tmp_path / name, LLAMA2_70B)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    source = read_source("owner/name")
    assert (source.name, source.spec.layers, source.stored) == ("owner/name", 80, None)
    assert asked == [
        ("owner/name", "config.json"),
        ("owner/name", "model.safetensors.index.json"),
    ]
