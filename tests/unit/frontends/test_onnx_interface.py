"""Graphs that do not map tokens to logits of every token, and operators of no known meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from ctx_export.core.errors import UserError
from ctx_export.frontends.onnx_file import read, read_graph
from tests.support.onnx_files import tokens_to_logits

Model = onnx.ModelProto


def written(model: Model, directory: Path) -> Path:
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def rename(model: Model, old: str, new: str) -> None:
    for info in (*model.graph.input, *model.graph.output):
        info.name = new if info.name == old else info.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def dimensions(info: onnx.ValueInfoProto, *sizes: int | str) -> None:
    shape = info.type.tensor_type.shape
    del shape.dim[:]
    for size in sizes:
        shape.dim.add(**{"dim_value" if isinstance(size, int) else "dim_param": size})


def another_input(name: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", 4])
        model.graph.input.append(info)

    return change


def custom_operator(model: Model) -> None:
    model.graph.node[1].domain = "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))


def unknown_operator(model: Model) -> None:
    model.graph.node[1].op_type = "Nonsense"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: rename(m, "input_ids", "tokens"), ["no input input_ids", "tokens"]),
        (lambda m: rename(m, "input_ids", "inputs_embeds"), ["inputs_embeds", "embedding"]),
        (lambda m: rename(m, "logits", "scores"), ["no output logits", "scores"]),
        (lambda m: dimensions(m.graph.input[0], 1, "s"), ["batch dimension of 1", "dynamic"]),
        (lambda m: dimensions(m.graph.input[0], "b", 128), ["token dimension of 128", "dynamic"]),
        (lambda m: dimensions(m.graph.input[0], "s"), ["1 dimensions"]),
        (lambda m: dimensions(m.graph.output[0], "b", 5), ["2 dimensions", "every token"]),
        (lambda m: dimensions(m.graph.output[0], "b", 1, 5), ["fixed token dimension of 1"]),
        (another_input("encoder_hidden_states"), ["encoder_hidden_states", "encoder-decoder"]),
        (another_input("use_cache_branch"), ["use_cache_branch", "unmerged"]),
        (custom_operator, ["MatMul (logits)", "domain acme"]),
        (unknown_operator, ["Nonsense (logits)", "opset 18"]),
    ],
    ids=[
        *("no-input-ids", "inputs-embeds", "no-logits", "fixed-batch", "fixed-tokens"),
        *("rank-1", "logits-rank-2", "one-token", "encoder", "merged", "domain", "operator"),
    ],
)
def test_what_is_no_decoder_is_refused(tmp_path, change, words):
    model = tokens_to_logits()
    change(model)
    with pytest.raises(UserError) as caught:
        read_graph(written(model, tmp_path))
    for word in words:
        assert word in str(caught.value)


def test_a_custom_operator_off_the_way_to_the_logits_is_dropped(tmp_path):
    model = tokens_to_logits()
    model.graph.node.append(helper.make_node("Watch", ["hidden"], ["seen"], domain="acme"))
    model.opset_import.append(helper.make_opsetid("acme", 1))
    graph = read_graph(written(model, tmp_path)).model.graph
    assert {node.op_type for node in graph} == {"Gather", "MatMul"}


def test_a_function_is_inlined_whatever_its_domain(tmp_path):
    model = tokens_to_logits()
    model.graph.node[1].CopyFrom(
        helper.make_node("Head", ["hidden", "head"], ["logits"], domain="pkg.mine")
    )
    body = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    opsets = [helper.make_opsetid("", 18)]
    function = helper.make_function("pkg.mine", "Head", ["x", "w"], ["y"], body, opsets)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("pkg.mine", 1))
    found = read_graph(written(model, tmp_path)).model
    assert [node.op_type for node in found.graph] == ["Gather", "MatMul"]
    assert not found.functions


def test_inputs_are_given_the_types_and_dimensions_of_a_package(tmp_path):
    model = tokens_to_logits()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    model.graph.node[1].name = "seen"
    rename(model, "hidden", "seen")
    graph = read_graph(written(model, tmp_path)).model.graph
    assert [(v.name, str(v.shape), v.dtype.name) for v in graph.inputs] == [
        ("input_ids", "[batch,tokens]", "INT64"),
        ("position_ids", "[batch,tokens]", "INT64"),
    ]
    assert str(graph.outputs[0].shape) == "[batch,tokens,5]"
    names = {value.name for node in graph for value in node.outputs}
    assert "seen" not in names and "source.seen" in names


def test_a_constant_of_absurd_size_is_not_computed(tmp_path):
    model = tokens_to_logits()
    size = helper.make_tensor("size", TensorProto.INT64, [2], [1 << 20, 1 << 20])
    model.graph.initializer.append(size)
    rename(model, "logits", "scores")
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["size"], ["huge"]),
            helper.make_node("ReduceMax", ["huge"], ["top"], keepdims=0),
            helper.make_node("Add", ["scores", "top"], ["logits"]),
        ]
    )
    model.graph.output[0].name = "logits"
    graph = read_graph(written(model, tmp_path)).model.graph
    assert "ConstantOfShape" in {node.op_type for node in graph}


def test_a_graph_without_attention_is_refused(tmp_path):
    path = written(tokens_to_logits(), tmp_path)
    with pytest.raises(UserError, match="has no attention"):
        read(path, original_context=64)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_reading_leaves_large_weights_unread(tmp_path, monkeypatch):
    import onnx_ir as ir

    from tests.support.onnx_files import externalise

    model = tokens_to_logits()
    del model.graph.initializer[0]
    table = onnx.numpy_helper.from_array(
        onnx.numpy_helper.to_array(model.graph.initializer[0]).repeat(400, 0).T, "table"
    )
    model.graph.initializer.insert(0, table)
    head = onnx.helper.make_tensor("head", TensorProto.FLOAT, [1600, 5], [0.5] * 8000)
    model.graph.initializer[1].CopyFrom(head)
    externalise(model, tmp_path)

    def unexpected(self: ir.ExternalTensor) -> None:
        raise AssertionError(f"{self.name} was read")

    monkeypatch.setattr(ir.ExternalTensor, "_load", unexpected)
    graph = read_graph(written(model, tmp_path)).model.graph
    assert isinstance(graph.initializers["table"].const_value, ir.ExternalTensor)
