"""A body of plain operators for ctx.source::CausalAttention, so that a lowered graph can run."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

_BODY = """
<ir_version: 10, opset_import: ["" : 23, "ctx.source" : 1]>
g (float[1] x) => (float[1] y) { y = Identity(x) }

<domain: "ctx.source", opset_import: ["" : 23]>
CausalAttention <scale, softcap, window> (q, k, v, sink) => (y) {
  scale_ = Constant <value_float: float = @scale> ()
  cap = Constant <value_float: float = @softcap> ()
  window_ = Constant <value_int: int = @window> ()
  zero = Constant <value = int64 {0}> ()
  one = Constant <value = int64 {1}> ()
  axis1 = Constant <value = int64[1] {1}> ()
  axis2 = Constant <value = int64[1] {2}> ()
  none = Constant <value = float {0}> ()
  below = Constant <value = float {-inf}> ()
  column = Constant <value = int64[4] {1, -1, 1, 1}> ()
  last = Constant <value = int64[1] {-1}> ()
  start = Constant <value = int64[1] {0}> ()
  axis3 = Constant <value = int64[1] {3}> ()

  heads = Shape <start = 1, end = 2> (q)
  kv_heads = Shape <start = 1, end = 2> (k)
  groups = Div (heads, kv_heads)
  shape = Shape (q)
  tokens = Shape <start = 2, end = 3> (q)
  spread = Concat <axis = 0> (axis1, axis1, groups, axis1, axis1)
  k32 = Cast <to = 1> (k)
  v32 = Cast <to = 1> (v)
  q32 = Cast <to = 1> (q)
  k5 = Unsqueeze (k32, axis2)
  v5 = Unsqueeze (v32, axis2)
  kt = Tile (k5, spread)
  vt = Tile (v5, spread)
  keys = Reshape (kt, shape)
  values = Reshape (vt, shape)
  turned = Transpose <perm = [0, 1, 3, 2]> (keys)
  products = MatMul (q32, turned)
  scaled = Mul (products, scale_)
  uncapped = Equal (cap, none)
  wide = Cast <to = 1> (uncapped)
  divisor = Add (cap, wide)
  ratio = Div (scaled, divisor)
  bent = Tanh (ratio)
  capped = Mul (bent, cap)
  scores = Where (uncapped, scaled, capped)
  count = Squeeze (tokens)
  rows = Range (zero, count, one)
  queries = Unsqueeze (rows, axis1)
  distance = Sub (queries, rows)
  later = Less (distance, zero)
  far = GreaterOrEqual (distance, window_)
  bounded = Greater (window_, zero)
  outside = And (far, bounded)
  hidden = Or (later, outside)
  visible = Where (hidden, below, scores)
  sink32 = Cast <to = 1> (sink)
  sink4 = Reshape (sink32, column)
  first = Slice (visible, start, axis1, axis3)
  nothing = Mul (distance, zero)
  zeros = Slice (nothing, start, axis1, axis1)
  zeros32 = Cast <to = 1> (zeros)
  of_rows = Add (zeros32, sink4)
  batch = Shape <start = 0, end = 1> (q)
  columns = Concat <axis = 0> (batch, heads, tokens, axis1)
  sinks = Expand (of_rows, columns)
  joined = Concat <axis = 3> (visible, sinks)
  weights = Softmax <axis = 3> (joined)
  kept = Slice (weights, start, last, axis3)
  summed = MatMul (kept, values)
  y = CastLike (summed, q)
}
"""


def add_bodies(model: ir.Model) -> onnx.ModelProto:
    """`model` as a protobuf whose CausalAttention nodes any runtime can execute."""
    body = ir.from_proto(onnx.parser.parse_model(_BODY)).functions
    found = [node for node in model.graph if node.domain == "ctx.source"]
    for node in found:
        query = node.inputs[0]
        assert query is not None and query.shape is not None and query.dtype is not None
        if len(node.inputs) == 3:  # a logit of -inf takes no part in a softmax
            held = np.full(query.shape[1], -np.inf, query.dtype.numpy())
            value = ir.Value(
                name=f"{node.outputs[0].name}/no_sink",
                const_value=ir.tensor(held),
                type=query.type,
                shape=ir.Shape(held.shape),
            )
            model.graph.register_initializer(value)
            node.resize_inputs(4)
            node.replace_input_with(3, value)
    if found:
        model.functions.update(body)
    return ir.to_proto(model)
