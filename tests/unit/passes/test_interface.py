"""The vocabulary projection runs on chosen rows only, however a file writes it; the oracle is the
same graph over all rows in onnxruntime. What is left of an old interface is dropped or named."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ctx_export.core.errors import UserError
from ctx_export.passes.interface import project_chosen_rows
from ctx_export.passes.sizes import read_sizes_of_tokens

WIDTH, VOCAB = 16, 5
_HEADER = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
_PROJECTIONS = {
    "MatMul": "logits = MatMul (hidden, head)",
    "bias before": "product = MatMul (hidden, head)\n logits = Add (bias, product)",
    "soft cap": """product = MatMul (hidden, head)
        small = Div (product, cap)
        bent = Tanh (small)
        logits = Mul (cap, bent)""",
    "Gemm": """flat = Reshape (hidden, flat_shape)
        product = Gemm (flat, head, bias)
        logits = Reshape (product, logits_shape)""",
    "quantised weight": """weight = DequantizeLinear (packed, step)
        logits = MatMul (hidden, weight)""",
    "quantised result": """product = MatMul (hidden, head)
        rounded = QuantizeLinear (product, step, zero)
        logits = DequantizeLinear (rounded, step, zero)""",
    "MatMulInteger": """levels, level, shift = DynamicQuantizeLinear (hidden)
        product = MatMulInteger (levels, packed, shift)
        sums = Cast <to = 1> (product)
        scale = Mul (level, step)
        logits = Mul (scale, sums)""",
    "whole slice": """whole = Slice (hidden, first, end, axis)
        logits = MatMul (whole, head)""",
}
_PARTS = {
    "last by Slice before": """last = Slice (hidden, minus, end, axis)
        logits = MatMul (last, head)""",
    "last by Gather before": """last = Gather <axis = 1> (hidden, minus)
        logits = MatMul (last, head)""",
    "last by Slice after": """product = MatMul (hidden, head)
        logits = Slice (product, minus, end, axis)""",
}


def graph_of(body: str) -> onnx.ModelProto:
    text = f"""{_HEADER} g (int64[batch, tokens] input_ids) => (float[batch, tokens, 5] logits)
    {{
        hidden = Gather (table, input_ids)
        {body}
    }}"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(3)
    constants = {
        "table": random.standard_normal((11, WIDTH)).astype(np.float32),
        "head": random.standard_normal((WIDTH, VOCAB)).astype(np.float32),
        "bias": random.standard_normal(VOCAB).astype(np.float32),
        "cap": np.float32(3.0),
        "step": np.float32(0.03),
        "zero": np.int8(0),
        "packed": random.integers(-100, 100, (WIDTH, VOCAB)).astype(np.int8),
        "flat_shape": np.array([-1, WIDTH], np.int64),
        "logits_shape": np.array([2, 7, VOCAB], np.int64),
        "first": np.array([0], np.int64),
        "minus": np.array([-1], np.int64),
        "end": np.array([np.iinfo(np.int64).max], np.int64),
        "axis": np.array([1], np.int64),
    }
    read = {name for node in model.graph.node for name in node.input}
    for name, array in constants.items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(["logits"], feeds)[0])


def with_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` after the pass, with its new input."""
    found = ir.from_proto(model)
    shape = ir.Shape(("batch", "rows"))
    rows = ir.Value(name="logit_rows", type=ir.TensorType(ir.DataType.INT64), shape=shape)
    project_chosen_rows(found.graph, rows)
    found.graph.inputs.append(rows)
    found.graph.outputs[0].shape = ir.Shape(("batch", "rows", VOCAB))
    made = ir.to_proto(found)
    del made.graph.value_info[:]
    return made


@pytest.mark.parametrize("name", list(_PROJECTIONS))
def test_logits_are_those_of_the_chosen_rows(name):
    model = graph_of(_PROJECTIONS[name])
    ids = np.random.default_rng(4).integers(0, 11, (2, 7))
    rows = np.array([[6, 0, 3], [1, 1, 5]])
    whole = run(model, input_ids=ids)
    chosen = run(with_rows(model), input_ids=ids, logit_rows=rows)
    expected = np.take_along_axis(whole, rows[:, :, None], axis=1)
    assert np.abs(chosen - expected).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("name", list(_PARTS))
def test_logits_of_the_last_token_alone_are_refused(name):
    with pytest.raises(UserError, match=r"some tokens only, chosen by (Slice|Gather) \("):
        with_rows(graph_of(_PARTS[name]))


def test_an_operator_that_mixes_rows_is_named():
    with pytest.raises(UserError, match=r"pass through Softmax \(logits\)"):
        with_rows(
            graph_of("product = MatMul (hidden, head)\n logits = Softmax <axis = 1> (product)")
        )


def sizes_graph(body: str) -> ir.Graph:
    text = f"""{_HEADER} g (int64[batch, tokens] input_ids, float[batch, 4, past, 8] cache,
        int64[batch, total] mask) => (int64[n] logits) {{ {body} }}"""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))).graph


@pytest.mark.parametrize(
    ("body", "free"),
    [
        ("s = Shape <start = 0, end = 2> (cache)\n logits = Identity (s)", True),
        ("s = Shape <start = 2, end = 3> (cache)\n logits = Identity (s)", False),
        ("s = Shape (mask)\n logits = Identity (s)", False),
        (
            "s = Shape (mask)\n z = Constant <value = int64[1] {0}> ()\n logits = Gather (s, z)",
            True,
        ),
        (
            "s = Shape (mask)\n z = Constant <value = int64[1] {1}> ()\n logits = Gather (s, z)",
            False,
        ),
    ],
    ids=["batch-and-heads", "past", "total", "batch", "picked-total"],
)
def test_sizes_that_the_tokens_have_free_the_tensor_they_were_read_from(body, free):
    graph = sizes_graph(body)
    ids = graph.inputs[0]
    read_sizes_of_tokens(graph, ids)
    assert (not graph.inputs[1].uses() and not graph.inputs[2].uses()) is free
    if free:
        assert ids.uses()
