"""The plugin library inside TensorRT-RTX's ONNX parser and builder; oracle: the layer types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from ctx_export.ops.spec import (
    DOMAIN,
    DUAL_CHUNK_ATTENTION,
    LANDMARK_ATTENTION,
    MEMORY_ATTENTION,
    PLUGIN_ATTRIBUTES,
    SCALED_ROTARY_EMBEDDING,
    SELF_EXTEND_ATTENTION,
    SINK_WINDOW_ATTENTION,
    Layout,
    OperatorSpec,
)

pytest.importorskip("tensorrt_rtx")

HEADS, KV_HEADS, HEAD_DIM, PAIRS = 4, 2, 64, 32
TYPES = {
    "FLOAT": TensorProto.FLOAT,
    "HALF": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
}
QUANTISED = {"FP8": TensorProto.FLOAT8E4M3FN, "INT8": TensorProto.INT8}
BASE = {
    "sinks": 4,
    "window": 32,
    "scale": 0.125,
    "softcap": 0.0,
    "alias": 0,
    "bounded": 1,
    "rotary_dim": 0,
    "interleaved": 0,
    "rotation": 0,
    "sink_position": 0,
    "layout": 0,
    "optional_inputs": "",
}


def attention_inputs(data: int, cache: int, batch: Any) -> dict[str, tuple[int, list[Any]]]:
    return {
        "q": (data, [batch, HEADS, "S", HEAD_DIM]),
        "k": (data, [batch, KV_HEADS, "S", HEAD_DIM]),
        "v": (data, [batch, KV_HEADS, "S", HEAD_DIM]),
        "past_key": (cache, [batch, KV_HEADS, "C", HEAD_DIM]),
        "past_value": (cache, [batch, KV_HEADS, "C", HEAD_DIM]),
        "seen": (TensorProto.INT64, [batch]),
        "new": (TensorProto.INT64, [batch]),
        "sink_q": (data, [batch, HEADS, "S", HEAD_DIM]),
        "inv_freq": (TensorProto.FLOAT, [1, PAIRS]),
        "multiplier": (TensorProto.FLOAT, [batch]),
        "head_sink": (TensorProto.FLOAT, [HEADS]),
        "key_scale": (TensorProto.FLOAT, [KV_HEADS]),
        "value_scale": (TensorProto.FLOAT, [KV_HEADS]),
    }


def model(
    node: onnx.NodeProto, inputs: dict[str, tuple[int, list[Any]]], outputs: dict[str, Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "plugin",
        [helper.make_tensor_value_info(name, *inputs[name]) for name in dict.fromkeys(node.input)],
        [helper.make_tensor_value_info(name, *outputs[name]) for name in node.output],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def attention_model(
    data: int,
    attributes: dict[str, Any],
    optional: Iterable[str] | None = None,
    cache: int | None = None,
    spec: OperatorSpec = SINK_WINDOW_ATTENTION,
) -> onnx.ModelProto:
    """One attention node; `optional` overrides the inputs that optional_inputs names, `cache` is
    the caches' type where it is another than the activations'."""
    named = str(attributes.get("optional_inputs", ""))
    connected = [name for name in named.split(",") if name] if optional is None else list(optional)
    inputs = attention_inputs(data, data if cache is None else cache, "B")
    node = helper.make_node(
        spec.name,
        [*spec.inputs, *connected],
        list(spec.outputs),
        domain=DOMAIN,
        **attributes,
        **PLUGIN_ATTRIBUTES,
    )
    shapes = {"y": "q", "present_key": "past_key", "present_value": "past_value"}
    return model(node, inputs, {name: inputs[source] for name, source in shapes.items()})


def rotary_model(data: int, attributes: dict[str, Any]) -> onnx.ModelProto:
    inputs = {
        "x": (data, ["B", HEADS, "S", HEAD_DIM]),
        "positions": (TensorProto.INT64, ["B", "S"]),
        "inv_freq": (TensorProto.FLOAT, [1, PAIRS]),
        "multiplier": (TensorProto.FLOAT, [1]),
    }
    node = helper.make_node(
        SCALED_ROTARY_EMBEDDING.name,
        list(SCALED_ROTARY_EMBEDDING.inputs),
        ["y"],
        domain=DOMAIN,
        **attributes,
        **PLUGIN_ATTRIBUTES,
    )
    return model(node, inputs, {"y": inputs["x"]})


def profiles(proto: onnx.ModelProto) -> list[dict[str, Any]]:
    """A decode and a prefill profile over the symbolic dimensions."""
    sizes = {
        "B": ((1, 1, 4), (1, 2, 4)),
        "S": ((1, 1, 1), (1, 64, 128)),
        "C": ((163, 163, 163),) * 2,
    }
    result: list[dict[str, Any]] = [{}, {}]
    for value in proto.graph.input:
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if any(isinstance(dim, str) for dim in dims):
            for index, shapes in enumerate(result):
                shapes[value.name] = [
                    [sizes[dim][index][kind] if isinstance(dim, str) else dim for dim in dims]
                    for kind in range(3)
                ]
    return result


Build = Callable[[list[onnx.ModelProto]], list[dict[str, Any]]]


@pytest.fixture
def build(plugin_library: Path, tmp_path: Path) -> Build:
    """Builds engines of models in one child process."""
    import tensorrt_rtx_libs

    libraries = tmp_path / "lib"
    libraries.mkdir()
    directory = Path(tensorrt_rtx_libs.__file__).parent
    (libraries / "libtensorrt_rtx.so").symlink_to(directory / "libtensorrt_rtx.so.1")

    def run(models: list[onnx.ModelProto]) -> list[dict[str, Any]]:
        cases = []
        for index, proto in enumerate(models):
            path = tmp_path / f"{index}.onnx"
            onnx.save(proto, path)
            attributes = {item.name: item for item in proto.graph.node[0].attribute}
            alias = "alias" in attributes and attributes["alias"].i == 1
            cases.append({"model": str(path), "alias": alias, "profiles": profiles(proto)})
        (tmp_path / "cases.json").write_text(json.dumps(cases))
        child = subprocess.run(
            [
                sys.executable,
                str(Path(__file__).with_name("engine_builder.py")),
                str(plugin_library),
                str(tmp_path / "cases.json"),
            ],
            env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert child.returncode == 0, child.stderr
        report = json.loads(child.stdout.splitlines()[-1])
        assert report["loading"] == []
        return report["results"]

    return run


def assert_plugin_engine(result: dict[str, Any], dtypes: str | list[str]) -> None:
    assert result["parsed"], result["errors"]
    assert result["layers"].count("PLUGIN_V3") == 1, result["layers"]
    assert result["engine_bytes"] > 0, result["errors"]
    assert result["errors"] == []
    found = [name for _, name in result["outputs"]]
    assert found == ([dtypes] * len(found) if isinstance(dtypes, str) else dtypes)


def test_every_dtype_and_alias_becomes_a_plugin_layer(build):
    choices = [(name, alias) for name in TYPES for alias in (0, 1)]
    models = [attention_model(TYPES[name], {**BASE, "alias": alias}) for name, alias in choices]
    for (name, _), result in zip(choices, build(models), strict=True):
        assert_plugin_engine(result, name)
        assert [shape for shape, _ in result["outputs"]] == [
            [-1, HEADS, -1, HEAD_DIM],
            [-1, KV_HEADS, -1, HEAD_DIM],
            [-1, KV_HEADS, -1, HEAD_DIM],
        ]


def test_rotary_becomes_a_plugin_layer(build):
    models = [
        rotary_model(data, {"rotary_dim": 2 * PAIRS, "interleaved": interleaved})
        for data in TYPES.values()
        for interleaved in (0, 1)
    ]
    names = [name for name in TYPES for _ in (0, 1)]
    for name, result in zip(names, build(models), strict=True):
        assert_plugin_engine(result, name)


def test_every_combination_of_optional_inputs_and_attributes(build):
    choices = [
        {
            **BASE,
            "rotary_dim": 2 * PAIRS if rotates else 0,
            "optional_inputs": ",".join(
                ["sink_q"] * sink_q
                + ["inv_freq", "multiplier"] * rotates
                + ["head_sink"] * head_sink
            ),
            "softcap": 30.0 * sink_q,
            "interleaved": rotates,
            "bounded": bounded,
            "sinks": 4 * bounded,
            "window": 0 if rotates else 32,
        }
        for sink_q in (0, 1)
        for rotates in (0, 1)
        for head_sink in (0, 1)
        for bounded in (0, 1)
    ]
    models = [attention_model(TensorProto.FLOAT16, choice) for choice in choices]
    for result in build(models):
        assert_plugin_engine(result, "HALF")


def test_every_rotation_becomes_a_plugin_layer(build):
    choices = [
        {
            **BASE,
            "rotary_dim": 2 * PAIRS,
            "rotation": rotation,
            "sink_position": sink_position,
            "optional_inputs": "inv_freq,multiplier",
        }
        for rotation in (1, 2)
        for sink_position in (0, 35)
    ]
    models = [attention_model(TensorProto.FLOAT16, choice) for choice in choices]
    for result in build(models):
        assert_plugin_engine(result, "HALF")


def laid_out(proto: onnx.ModelProto, layout: Layout) -> onnx.ModelProto:
    """An attention's model with q, k, v and y in that layout."""
    heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS, "y": HEADS}
    (node,) = proto.graph.node
    if layout == Layout.PACKED:
        heads["q"] += 2 * KV_HEADS
        node.input[1] = node.input[2] = "q"
        del proto.graph.input[1:3]
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in heads:
            element = value.type.tensor_type.elem_type
            shape = ["B", "S", heads[value.name] * HEAD_DIM]
            value.CopyFrom(helper.make_tensor_value_info(value.name, element, shape))
    return proto


def test_every_layout_becomes_a_plugin_layer(build):
    choices = [(name, layout) for name in TYPES for layout in (Layout.TOKEN_MAJOR, Layout.PACKED)]
    rotates = {"rotary_dim": 2 * PAIRS, "rotation": 1, "optional_inputs": "inv_freq,multiplier"}
    models = [
        laid_out(attention_model(TYPES[name], {**BASE, **rotates, "layout": layout}), layout)
        for name, layout in choices
    ]
    for (name, _), result in zip(choices, build(models), strict=True):
        assert_plugin_engine(result, name)
        assert [shape for shape, _ in result["outputs"]] == [
            [-1, -1, HEADS * HEAD_DIM],
            [-1, KV_HEADS, -1, HEAD_DIM],
            [-1, KV_HEADS, -1, HEAD_DIM],
        ]


@pytest.mark.parametrize("cache", QUANTISED)
def test_quantised_caches_become_inputs_and_outputs_of_a_plugin_layer(build, cache):
    choices = [(name, optional) for name in TYPES for optional in ("", "inv_freq,multiplier,")]
    models = [
        attention_model(
            TYPES[name],
            {
                **BASE,
                "alias": 1,
                "rotary_dim": 2 * PAIRS if optional else 0,
                "optional_inputs": f"{optional}key_scale,value_scale",
            },
            cache=QUANTISED[cache],
        )
        for name, optional in choices
    ]
    for (name, _), result in zip(choices, build(models), strict=True):
        assert_plugin_engine(result, [name, cache, cache])


def test_a_cache_of_another_type_than_its_scales_say_is_refused(build):
    scaled = {**BASE, "optional_inputs": "key_scale,value_scale"}
    unscaled = attention_model(TensorProto.FLOAT16, BASE, cache=TensorProto.INT8)
    for proto in (unscaled, attention_model(TensorProto.FLOAT16, scaled)):
        (result,) = build([proto])
        assert result.get("engine_bytes", 0) == 0
        assert result["errors"]


WRONG = {
    "window is -3": ({"window": -3}, None),
    "sinks is -1": ({"sinks": -1}, None),
    "alias is 2": ({"alias": 2}, None),
    "bounded is 7": ({"bounded": 7}, None),
    "softcap is -1": ({"softcap": -1.0}, None),
    "rotary_dim is 63": (
        {"rotary_dim": 63, "optional_inputs": "inv_freq,multiplier"},
        None,
    ),
    "rotation is 1 with rotary_dim 0": ({"rotation": 1}, None),
    "rotation is 3": ({"rotation": 3}, None),
    "sink_position is 35": ({"sink_position": 35}, None),
    "layout is 3": ({"layout": 3}, None),
    "layout is 1": ({"layout": 1, "optional_inputs": "sink_q"}, None),
    "q has 4 dimensions": ({"layout": 2}, None),
    "rotary_dim is 64 and optional_inputs": ({"rotary_dim": 64}, None),
    "is unknown, repeated or out of order": ({"optional_inputs": "head_sink,sink_q"}, None),
    '"block_table" is unknown': ({"optional_inputs": "block_table"}, ["sink_q"]),
    "the node has 8 inputs": ({}, ["sink_q"]),
    "give both key_scale and value_scale": ({"optional_inputs": "key_scale"}, None),
    "window has": ({"window": "wide"}, None),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_attribute_is_a_clear_error(build, fault):
    attributes, optional = WRONG[fault]
    (result,) = build([attention_model(TensorProto.FLOAT, {**BASE, **attributes}, optional)])
    assert result.get("engine_bytes", 0) == 0
    assert any(fault in error and "give" in error for error in result["errors"]), result["errors"]


@pytest.mark.parametrize("name", [name for name in BASE if name != "optional_inputs"])
def test_missing_attribute_is_named(build, name):
    attributes = {key: value for key, value in BASE.items() if key != name}
    (result,) = build([attention_model(TensorProto.FLOAT, attributes)])
    assert result.get("engine_bytes", 0) == 0
    assert any(f"attribute {name} is missing" in error for error in result["errors"])


LANDMARK = {
    "sinks": 4,
    "window": 32,
    "block": 16,
    "topk": 4,
    "shared": 0,
    "landmark": 0,
    "scale": 0.125,
    "softcap": 0.0,
    "alias": 0,
    "rotary_dim": 2 * PAIRS,
    "interleaved": 0,
    "layout": 0,
    "optional_inputs": "inv_freq,multiplier",
}


def far_model(spec: OperatorSpec, data: int, attributes: dict[str, Any]) -> onnx.ModelProto:
    proto = attention_model(data, attributes, spec=spec)
    layout = Layout(attributes.get("layout", 0))
    return laid_out(proto, layout) if layout in (Layout.TOKEN_MAJOR, Layout.PACKED) else proto


def landmark_model(data: int, attributes: dict[str, Any]) -> onnx.ModelProto:
    return far_model(LANDMARK_ATTENTION, data, attributes)


def assert_attention_engine(result: dict[str, Any], dtype: str, layout: int) -> None:
    assert_plugin_engine(result, dtype)
    cache = [-1, KV_HEADS, -1, HEAD_DIM]
    by_head = layout == Layout.HEAD_MAJOR
    y = [-1, HEADS, -1, HEAD_DIM] if by_head else [-1, -1, HEADS * HEAD_DIM]
    assert [shape for shape, _ in result["outputs"]] == [y, cache, cache]


def test_landmark_attention_becomes_a_plugin_layer(build):
    choices = [
        (name, {**LANDMARK, "layout": layout, "alias": alias})
        for name in TYPES
        for layout in Layout
        for alias in (0, 1)
    ]
    choices += [
        ("HALF", {**LANDMARK, "optional_inputs": "inv_freq,multiplier,head_sink", "softcap": 9.0}),
        ("HALF", {**LANDMARK, "rotary_dim": 0, "optional_inputs": "", "shared": 1}),
        ("HALF", {**LANDMARK, "landmark": 1, "interleaved": 1}),
    ]
    results = build([landmark_model(TYPES[name], attributes) for name, attributes in choices])
    for (name, attributes), result in zip(choices, results, strict=True):
        assert_attention_engine(result, name, attributes["layout"])


WRONG_LANDMARK = {
    "window is 0": {"window": 0},
    "block is 0": {"block": 0},
    "topk is 0": {"topk": 0},
    "shared is 2": {"shared": 2},
    "landmark is 1 with block 1": {"landmark": 1, "block": 1},
    "landmark is 1 with block 16": {
        "landmark": 1,
        "optional_inputs": "inv_freq,multiplier,head_sink",
    },
    "rotary_dim is 64 and optional_inputs": {"optional_inputs": ""},
}


def test_wrong_attribute_of_landmark_attention_is_a_clear_error(build):
    models = [
        landmark_model(TensorProto.FLOAT, {**LANDMARK, **w}) for w in WRONG_LANDMARK.values()
    ]
    for fault, result in zip(WRONG_LANDMARK, build(models), strict=True):
        assert result.get("engine_bytes", 0) == 0
        assert any(fault in error and "give" in error for error in result["errors"]), fault


FAR_BASE = {
    name: LANDMARK[name]
    for name in (
        "scale",
        "softcap",
        "alias",
        "rotary_dim",
        "interleaved",
        "layout",
        "optional_inputs",
    )
}
PARTS = {
    "self-extend": (SELF_EXTEND_ATTENTION, {"group": 4, "neighbor": 32, **FAR_BASE}),
    "dual-chunk": (DUAL_CHUNK_ATTENTION, {"chunk": 24, "reach": 32, **FAR_BASE}),
    "memory": (
        MEMORY_ATTENTION,
        {"sinks": 4, "window": 8, "memory": 4, "block": 8, "memory_slots": 20, **FAR_BASE},
    ),
}


def test_attentions_by_parts_become_plugin_layers(build):
    named = {"optional_inputs": "inv_freq,multiplier,head_sink", "softcap": 9.0}
    choices = [
        (kind, name, {"layout": index % 3, "alias": index % 2, **extra})
        for kind in PARTS
        for index, (name, extra) in enumerate(
            [*((name, {}) for name in TYPES), ("HALF", named)]
            + [("BF16", {"rotary_dim": 0, "optional_inputs": "", "interleaved": 1})]
        )
    ]
    models = []
    for kind, name, changes in choices:
        spec, base = PARTS[kind]
        assert list(spec.attributes) == list(base)
        models.append(far_model(spec, TYPES[name], {**base, **changes}))
    for (_, name, changes), result in zip(choices, build(models), strict=True):
        assert_attention_engine(result, name, changes["layout"])


WRONG_PARTS = {
    "group is 0": ("self-extend", {"group": 0}),
    "group is 5 and neighbor 32": ("self-extend", {"group": 5}),
    "reach is 23 and chunk 24": ("dual-chunk", {"reach": 23}),
    "chunk is 0": ("dual-chunk", {"chunk": 0}),
    "window is 0": ("memory", {"window": 0}),
    "sinks is -1": ("memory", {"sinks": -1}),
    "memory_slots is 4 and memory 4": ("memory", {"memory_slots": 4}),
    "rotary_dim is 64 and optional_inputs": ("memory", {"optional_inputs": ""}),
}


def test_wrong_attribute_of_an_attention_by_parts_is_a_clear_error(build):
    models = []
    for kind, wrong in WRONG_PARTS.values():
        spec, base = PARTS[kind]
        models.append(far_model(spec, TensorProto.FLOAT, {**base, **wrong}))
    for fault, result in zip(WRONG_PARTS, build(models), strict=True):
        assert result.get("engine_bytes", 0) == 0
        assert any(fault in error and "give" in error for error in result["errors"]), fault
