"""Damaged and hostile ONNX files are refused with the reason before anything reads a weight."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from ctx_export.core.errors import UserError
from ctx_export.frontends.onnx_proto import read_proto
from tests.support.onnx_files import externalise, refer, tokens_to_logits

Model = onnx.ModelProto


def refused(directory: Path, model: Model, *words: str) -> None:
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError) as caught:
        read_proto(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def test_a_whole_file_is_read(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(tokens_to_logits().SerializeToString())
    assert [node.op_type for node in read_proto(path).graph.node] == ["Gather", "MatMul"]


def test_external_data_is_referred_to_where_it_lies(tmp_path):
    model = tokens_to_logits()
    refer(externalise(model, tmp_path), length=None)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    table = read_proto(path).graph.initializer[0]
    found = {entry.key: entry.value for entry in table.external_data}
    assert found == {"location": str(tmp_path / "data.bin"), "offset": "16", "length": "80"}
    assert not table.raw_data


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\x08\x0a"])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="ONNX model"):
        read_proto(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path, share):
    whole = tokens_to_logits().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError):
        read_proto(path)


def test_a_directory_and_a_missing_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.onnx"):
        with pytest.raises(UserError, match="is not a file"):
            read_proto(path)


def cyclic(model: Model) -> None:
    model.graph.node[0].input[0] = "logits"


def unsorted_nodes(model: Model) -> None:
    gather, product = model.graph.node
    nodes = [helper.make_node("MatMul", product.input, product.output), gather]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def made_twice(model: Model) -> None:
    model.graph.node.append(helper.make_node("Identity", ["hidden"], ["logits"]))


def made_by_nothing(model: Model) -> None:
    model.graph.node[1].input[1] = "weights"


def two_weights(model: Model) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def two_outputs(model: Model) -> None:
    model.graph.output.append(model.graph.output[0])


def no_output(model: Model) -> None:
    model.graph.output[0].name = "scores"


def calls_itself(model: Model) -> None:
    node = helper.make_node("Again", ["x"], ["y"], domain="mine")
    opsets = [helper.make_opsetid("mine", 1)]
    model.functions.append(helper.make_function("mine", "Again", ["x"], ["y"], [node], opsets))


def negative_dimension(model: Model) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1


def negative_shape(model: Model) -> None:
    model.graph.initializer[0].dims[0] = -5


def overflowing_shape(model: Model) -> None:
    model.graph.initializer[1].dims[:] = [1 << 40, 1 << 40]


def too_few_bytes(model: Model) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def too_few_numbers(model: Model) -> None:
    head = model.graph.initializer[1]
    head.ClearField("raw_data")
    head.float_data.extend([0.0] * 19)


def unknown_type(model: Model) -> None:
    model.graph.initializer[0].data_type = 250


def no_opset(model: Model) -> None:
    del model.opset_import[:]


def rewritten_before(model: Model) -> None:
    model.opset_import.append(helper.make_opsetid("ctx", 1))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cyclic, ["cyclic", "Gather (hidden)", "'logits'"]),
        (unsorted_nodes, ["not sorted", "MatMul (logits)", "'hidden'"]),
        (made_twice, ["'logits'", "made twice", "Identity"]),
        (made_by_nothing, ["MatMul (logits)", "'weights'", "nothing makes"]),
        (two_weights, ["two weights", "'table'"]),
        (two_outputs, ["two outputs", "'logits'"]),
        (no_output, ["no node makes the output scores"]),
        (calls_itself, ["mine.Again", "calls itself"]),
        (negative_dimension, ["input_ids", "-1", "dynamic axes"]),
        (negative_shape, ["table", "[-5, 4]"]),
        (overflowing_shape, ["head", "1099511627776"]),
        (too_few_bytes, ["table", "80 bytes", "76 bytes"]),
        (too_few_numbers, ["head", "20 numbers", "19 numbers"]),
        (unknown_type, ["table", "250"]),
        (no_opset, ["no opset"]),
        (rewritten_before, ["domain ctx", "already"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_damaged_graph_is_refused(tmp_path, damage: Callable[[Model], None], words):
    model = tokens_to_logits()
    damage(model)
    refused(tmp_path, model, *words)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "/etc/hostname"}, ["'/etc/hostname'", "relative path"]),
        ({"location": "../outside.bin"}, ["'../outside.bin'", "relative path"]),
        ({"location": "a/../../outside.bin"}, ["relative path"]),
        ({"location": "..\\outside.bin"}, ["relative path"]),
        ({"location": "C:\\outside.bin"}, ["relative path"]),
        ({"location": ""}, ["relative path"]),
        ({"location": "missing.bin"}, ["missing.bin", "missing"]),
        ({"location": "."}, ["is not a file"]),
        ({"offset": 17}, ["bytes 17 to 97", "has 96", "truncated"]),
        ({"offset": -1}, ["offset '-1'"]),
        ({"offset": 1 << 70}, ["offset"]),
        ({"length": 76}, ["80 bytes", "refers to 76"]),
        ({"length": "many"}, ["length 'many'"]),
    ],
    ids=lambda value: (
        "-".join(f"{k}-{v}" for k, v in value.items()) if isinstance(value, dict) else None
    ),
)
def test_external_data_that_is_not_the_tensor_s_is_refused(tmp_path, entries, words):
    (tmp_path.parent / "outside.bin").write_bytes(b"\0" * 96)
    model = tokens_to_logits()
    refer(externalise(model, tmp_path), **entries)
    refused(tmp_path, model, "table", *words)


def test_a_location_that_is_no_text_is_refused(tmp_path):
    model = tokens_to_logits()
    externalise(model, tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"data.bin", b"data\xff\xfebi"))
    with pytest.raises(UserError, match=r"no text|not an ONNX model"):
        read_proto(path)


def test_a_link_out_of_the_directory_is_refused(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    model = tokens_to_logits()
    externalise(model, inside)
    os.rename(inside / "data.bin", tmp_path / "elsewhere.bin")
    (inside / "data.bin").symlink_to(tmp_path / "elsewhere.bin")
    refused(inside, model, "data.bin", "link out of the model's directory")


def test_a_link_within_the_directory_is_followed(tmp_path):
    model = tokens_to_logits()
    externalise(model, tmp_path)
    os.rename(tmp_path / "data.bin", tmp_path / "blob")
    (tmp_path / "data.bin").symlink_to("blob")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert read_proto(path).graph.initializer[0].external_data[0].value == str(tmp_path / "blob")


def test_a_tensor_inside_a_subgraph_is_checked_too(tmp_path):
    model = tokens_to_logits()
    tensor = helper.make_tensor("inner", onnx.TensorProto.FLOAT, [2], [0.0, 1.0])
    tensor.dims[0] = 3
    output = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value=tensor)], "b", [], [output]
    )
    model.graph.node.append(
        helper.make_node("If", ["flag"], ["w"], then_branch=branch, else_branch=branch)
    )
    flag = helper.make_tensor("flag", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(flag)
    refused(tmp_path, model, "inner", "3 numbers", "2 numbers")
