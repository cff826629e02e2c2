"""Tensor places read from headers equal what the safetensors library reads."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from ctx_export import demo
from ctx_export.core.errors import UserError
from ctx_export.frontends.shards import read_shards
from tests.support.checkpoints import copy_demo, split_shards


def test_places_hold_the_bytes_that_safetensors_wrote(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b.c": rng.standard_normal(7).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = read_shards(tmp_path)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        place = found[name]
        data = place.file.read_bytes()[place.offset : place.offset + place.length]
        assert place.shape == array.shape
        assert data == array.tobytes()


def test_sharded_and_single_checkpoints_have_the_same_tensors(tmp_path):
    single = read_shards(demo.path())
    checkpoint = copy_demo(tmp_path)
    split_shards(checkpoint)
    sharded = read_shards(checkpoint)
    assert set(sharded) == set(single)
    for name, place in single.items():
        other = sharded[name]
        assert (other.dtype, other.shape, other.length) == (place.dtype, place.shape, place.length)


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "truncated"),
        (struct.pack("<Q", 1 << 62), "truncated"),
        (struct.pack("<Q", 4) + b"{{{{", "broken header"),
        (struct.pack("<Q", 2) + b"[]", "broken header"),
        (header({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "truncated"),
        (header({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}), "t"),
        (header({"t": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "t"),
        (header({"t": {"dtype": "F32", "shape": [1]}}), "t"),
        (header({"t": 5}), "t"),
    ],
)
def test_a_broken_shard_is_refused(tmp_path, content, word):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=word):
        read_shards(tmp_path)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", 5])
def test_an_index_may_not_leave_its_directory(tmp_path, name):
    index = {"weight_map": {"t": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError):
        read_shards(tmp_path)
