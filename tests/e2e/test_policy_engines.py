"""Engines of every cache policy and length-dependent method, built without a GPU.

Oracle: FORMULAS section 4 for the bytes, the plan's nodes by hand for the plugin layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctx_export.core.manifest import Manifest
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.inspection.package import inspect_package
from ctx_export.pipeline import export_source
from tests.support import tiny

HEAD_DIM = 64  # the kernels take multiples of 8
LAYERS, KV_HEADS = tiny.LAYERS, tiny.KV_HEADS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    checkpoint = tiny.save(tmp_path_factory.mktemp("engines") / "checkpoint", head_dim=HEAD_DIM)
    return tiny.source(checkpoint, "fp16")


# Options and slots of a layer; its one node is the attention, which rotates.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "streaming": ({"method": "streaming", "sinks": 4, "window": 60}, 4 + 60 + 15),
    "streaming without sinks": ({"method": "streaming", "sinks": 0, "window": 60}, 75),
    "sliding-window": ({"method": "sliding-window", "window": 64}, 64 + 15),
    "lm-infinite": ({"method": "lm-infinite", "sinks": 2, "window": 50}, 2 + 50 + 15),
    "yarn over a window": ({"method": "yarn", "sinks": 4, "window": 124}, 4 + 124 + 15),
    "dynamic-ntk": ({"method": "dynamic-ntk", "target": 256}, 256),
    "dynamic-yarn": ({"method": "dynamic-yarn", "target": 256}, 256),
    "longrope over a window": (
        {
            "method": "longrope",
            "sinks": 2,
            "window": 30,
            "parameters": {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32},
        },
        2 + 30 + 15,
    ),
    "memory": (
        {"memory_tokens": 4, "memory_block": 8, "sinks": 4, "window": 40},
        4 + (4 + 2) + 40 + 7 + 15,
    ),
    "landmark": (
        {"landmark_block": 8, "landmark_topk": 2, "sinks": 4, "window": 20, "target": 256},
        4 + 32 * 9,
    ),
    "landmark with tokens": (
        {"landmark_token": 3, "landmark_block": 8, "landmark_topk": 2, "target": 256},
        256 + 36,
    ),
    "self-extend over yarn": (
        {"method": "yarn", "factor": 2.0, "group": 4, "neighbor": 64, "target": 256},
        256,
    ),
    "dual-chunk": ({"chunk": 48, "target": 256}, 256),
    "yarn, int8": ({"method": "yarn", "target": 256, "kv_cache_dtype": "int8"}, 256),
    "streaming, fp8": (
        {"method": "streaming", "sinks": 4, "window": 60, "kv_cache_dtype": "fp8"},
        4 + 60 + 15,
    ),
    "dynamic-ntk, int8": (
        {"method": "dynamic-ntk", "target": 256, "kv_cache_dtype": "int8"},
        256,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_node_of_a_policy_is_a_plugin_layer(source, tmp_path, name):
    options, slots = CASES[name]
    recipe = Recipe(
        model=str(source.checkpoint.directory),
        output=tmp_path / "package",
        precision="fp16",
        engine="tensorrt-rtx",
        validate=False,
        max_chunk=16,
        max_batch=2,
        **options,
    )
    result = export_source(source, recipe)
    package: Path = result.output
    manifest = Manifest.load(package)
    assert manifest.engine is not None
    frequencies = manifest.has_role("rope_length")
    assert len(manifest.engine["plugin_layers"]) == LAYERS + frequencies
    assert (package / "model.engine").stat().st_size > 0
    # 2 · layers · KV heads · head dimension · slots · bytes of an element
    element = 1 if "kv_cache_dtype" in options else 2
    expected = 2 * LAYERS * KV_HEADS * HEAD_DIM * slots * element
    assert inspect_package(package)["cache_bytes_per_sequence"] == expected
    past = manifest.engine["profiles"]["prefill"]["input_ids"]
    assert past[2] == [2, 16]
