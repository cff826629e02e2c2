"""Fusing weight transposes into products. Oracle: node lists written by hand, numpy's product."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort

from ctx_export.runtime.model_file import fuse_weight_transposes

_MODEL = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[N,3] x, float[3,3] d) => (float[N,2] y, float[N,3] z, float[3,2] kept)
  <float[2,3] w = {1, 2, 3, 4, 5, 6}>
{
  wt = Transpose <perm = [1, 0]> (w)
  y = MatMul (x, wt)
  dt = Transpose <perm = [1, 0]> (d)
  z = MatMul (x, dt)
  kept = Identity (wt)
}
"""


def test_stored_weights_are_read_as_they_lie() -> None:
    model = onnx.parser.parse_model(
        _MODEL.replace("  kept = Identity (wt)\n", "").replace(", float[3,2] kept", "")
    )
    assert fuse_weight_transposes(model) == 1
    assert [(n.domain, n.op_type, list(n.input)) for n in model.graph.node] == [
        ("com.microsoft", "FusedMatMul", ["x", "w"]),
        ("", "Transpose", ["d"]),
        ("", "MatMul", ["x", "dt"]),
    ]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y = session.run(["y"], {"x": x, "d": np.eye(3, dtype=np.float32)})[0]
    assert np.asarray(y).tolist() == [[8, 17], [26, 62]]


def test_a_transpose_with_another_use_stays() -> None:
    model = onnx.parser.parse_model(_MODEL)
    assert fuse_weight_transposes(model) == 1
    assert [n.op_type for n in model.graph.node].count("Transpose") == 2


def test_other_types_are_left_alone() -> None:
    model = onnx.parser.parse_model(_MODEL.replace("float[", "float16["))
    assert fuse_weight_transposes(model) == 0
    assert all(opset.domain == "" for opset in model.opset_import)
