"""A tensor for grouped heads that a graph repeats. Oracle: onnxruntime over the graph before."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ctx_export.passes.heads import separate_grouped_heads

GROUPED = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[B,S,2,1,8] fused) => (float[B,S,6,8] y)
<int64[5] sizes = {1, 1, 1, 3, 1}, int64[4] heads = {0, 0, 6, 8}>
{
  kept = Relu(fused)
  many = Expand(kept, sizes)
  y = Reshape(many, heads)
}
"""


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"fused": x})[0]
    return result


def read(text: str) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def test_heads_before_their_repetition_are_a_tensor_of_four_dimensions():
    x = np.random.default_rng(0).standard_normal((2, 5, 2, 1, 8)).astype(np.float32)
    model = read(GROUPED)
    expected = run(model, x)
    assert separate_grouped_heads(model.graph)
    squeezed = next(node for node in model.graph if node.op_type == "Squeeze").outputs[0]
    assert list(squeezed.shape) == ["B", "S", 2, 8]
    assert np.array_equal(run(model, x), expected)
    assert not separate_grouped_heads(model.graph)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fused) =>", "plain) =>"),
        ("[B,S,2,1,8] fused", "[B,S,2,3,8] fused"),
        ("[B,S,2,1,8] fused", "[B,S,N,1,8] fused"),
    ],
    ids=["unsqueezed", "no group", "unknown heads"],
)
def test_other_repetitions_are_left_alone(old, new):
    text = GROUPED.replace(old, new)
    if "plain" in new:
        text = text.replace("[B,S,2,1,8] plain", "[B,S,2,8] plain").replace(
            "kept = Relu(fused)",
            "axis = Constant<value_ints = [3]>()\n  kept = Unsqueeze(plain, axis)",
        )
    model = read(text)
    count = len(model.graph)
    assert not separate_grouped_heads(model.graph)
    assert len(model.graph) == count
