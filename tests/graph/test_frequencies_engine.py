"""RotaryFrequencies in engines of the real TensorRT-RTX builder; oracle: the plugin layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from ctx_export.build.engine import EngineInfo, EngineRequest, build_engine, plugin_library
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import TensorInfo
from ctx_export.ops.frequencies import rotary_frequencies
from ctx_export.ops.rotary import scaled_rotary_embedding
from ctx_export.ops.spec import DOMAIN, PLUGIN_ATTRIBUTES
from tests.support.frequencies import HEAD_DIM, TABLES

HEADS = 3
IO = (
    TensorInfo(name="rope_length", dtype="int64", shape=("batch",), role="rope_length"),
    TensorInfo(name="positions", dtype="int64", shape=("batch", "tokens"), role="input_ids"),
    TensorInfo(
        name="x", dtype="float16", shape=("batch", HEADS, "tokens", HEAD_DIM), role="input_ids"
    ),
    TensorInfo(
        name="y", dtype="float16", shape=("batch", HEADS, "tokens", HEAD_DIM), role="logits"
    ),
)
ELEMENTS = {"int64": TensorProto.INT64, "float16": TensorProto.FLOAT16}


def context_node(operator: str, inputs: list[str], outputs: list[str], **attributes: int):
    attributes = {**attributes, **PLUGIN_ATTRIBUTES}
    name = f"site.{outputs[0]}"
    return helper.make_node(operator, inputs, outputs, name=name, domain=DOMAIN, **attributes)


def write_model(
    directory: Path, tables: np.ndarray, scalars: np.ndarray, *, version: str = "1"
) -> Path:
    """The frequencies at each sequence's length, and a rotation by them."""
    frequencies = ["inv_freq", "multiplier"]
    nodes = [
        context_node("RotaryFrequencies", ["rope_length", "tables", "scalars"], frequencies),
        context_node(
            "ScaledRotaryEmbedding",
            ["x", "positions", *frequencies],
            ["y"],
            rotary_dim=HEAD_DIM,
            interleaved=0,
        ),
    ]
    next(a for a in nodes[0].attribute if a.name == "plugin_version").s = version.encode()
    values = [helper.make_tensor_value_info(t.name, ELEMENTS[t.dtype], t.shape) for t in IO]
    constants = {"tables": tables, "scalars": scalars}
    graph = helper.make_graph(
        nodes,
        "rotation",
        values[:3],
        values[3:],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)],
        functions=[ir.to_proto(f) for f in (rotary_frequencies(), scaled_rotary_embedding())],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    path = directory / "model.onnx"
    onnx.save(model, path)
    return path


def build(model: Path) -> EngineInfo:
    return build_engine(
        EngineRequest(
            model=model,
            engine=model.with_name("model.engine"),
            plugin_library=plugin_library(),
            runtime="tensorrt-rtx",
            io=IO,
            max_batch=4,
            max_chunk=7,
            capacity=1031,
        )
    )


@pytest.mark.parametrize("name", ["dynamic-ntk", "dynamic-yarn", "longrope"])
def test_the_node_becomes_a_plugin_layer(tmp_path, name):
    info = build(write_model(tmp_path, *TABLES[name]().packed()))
    assert info.plugin_layers == ("site.inv_freq", "site.y")
    assert info.profiles["prefill"]["rope_length"] == [[1], [1], [4]]
    assert b"RotaryFrequencies" in (tmp_path / "model.engine").read_bytes()


def test_a_node_left_to_its_function_body_is_named(tmp_path):
    model = write_model(tmp_path, *TABLES["longrope"]().packed(), version="7")
    with pytest.raises(UserError, match=r"1 plugin layers for 2 ctx nodes.*site\.inv_freq"):
        build(model)


def test_tables_of_another_rank_are_refused_with_the_node_s_name(tmp_path):
    tables, scalars = TABLES["longrope"]().packed()
    with pytest.raises(UserError, match=r"(?s)parser refuses.*node site\.inv_freq"):
        build(write_model(tmp_path, tables.reshape(8, -1), scalars))


def test_tables_of_another_number_of_rows_are_refused(tmp_path):
    tables, scalars = TABLES["longrope"]().packed()
    with pytest.raises(UserError, match=r"no engine could be built.*site\.inv_freq"):
        build(write_model(tmp_path, tables[:3], scalars))
