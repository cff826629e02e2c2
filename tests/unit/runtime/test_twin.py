"""Widening a bfloat16 model. Oracle: rows written by hand and ml_dtypes.

The text format states bfloat16 values as bits: 16256 is 1, 16384 is 2, 16448 is 3.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx

from ctx_export.runtime.twin import is_bfloat16, narrow, widen, widen_types

_MODEL = """
<ir_version: 10, opset_import: ["" : 23, "local" : 1]>
wide (bfloat16[N] x, int64[1] n, bool c) => (bfloat16[N] y)
  <bfloat16[2] inline = {16256, 16448}>
{
  a = Cast <to = 16> (n)
  k = Constant <value = bfloat16 {16384}> ()
  f = local.f (a, k)
  y = If (c) <
    then_branch = t () => (bfloat16[N] p) { p = Cast <to = 16> (f) },
    else_branch = e () => (bfloat16[N] q) { q = Add (f, inline) }
  >
}
<domain: "local", opset_import: ["" : 23]>
f (a, k) => (z)
{
  z0 = Cast <to = 16> (a)
  z = Mul (z0, k)
}
"""


def test_no_bfloat16_is_left_anywhere() -> None:
    model = onnx.parser.parse_model(_MODEL)
    assert is_bfloat16(model)
    widen_types(model)
    assert not is_bfloat16(model)
    text = onnx.printer.to_text(model)
    assert "bfloat16" not in text and "to: int = 16" not in text and "= 16>" not in text
    assert text.count("to: int = 1>") + text.count("to = 1>") + text.count("= 1>") >= 3
    onnx.checker.check_model(model)
    inline = onnx.numpy_helper.to_array(model.graph.initializer[0])
    assert inline.dtype == np.float32 and inline.tolist() == [1.0, 3.0]


def test_widening_is_exact() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    with np.errstate(invalid="ignore"):
        expected = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(widen(bits), expected)


def test_narrowing_rounds_to_even() -> None:
    # 1 + 2^-8 lies half way between 1 and 1 + 2^-7; 1 + 3·2^-8 between odd and even.
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -2.0], np.float32)
    assert widen(narrow(values)).tolist() == [1.0, 1.0, 1 + 2**-6, -2.0]
