"""A package written by hand: one attention layer of plain operators under the native contract.

Keys, values and queries are the token's embedding E[t]; logits are y·Wᵀ. `expected` computes the
same from the definition, token by token, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from ctx_export.core.manifest import CacheInfo
from tests.unit.runtime.fakes import manifest

VOCAB, HEADS, HEAD_DIM = 11, 2, 3
WIDTH = HEADS * HEAD_DIM
_TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
_ONNX_NAMES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}
_GRAPH = """
<ir_version: 10, opset_import: ["" : 23]>
tiny (int64[B,S] input_ids, int64[B] seen, int64[B] new, int64[B,R] logit_rows,
      T[B,2,C,3] past_key, T[B,2,C,3] past_value)
  => (T[B,R,11] logits, T[B,2,C,3] present_key, T[B,2,C,3] present_value)
  <int64 zero = {0}, int64 one = {1}, int64[1] ax1 = {1}, int64[1] ax2 = {2},
   int64[2] ax13 = {1, 3}, int64[3] ax123 = {1, 2, 3},
   int64[4] heads = {0, 0, 2, 3},
   int64[3] ax023 = {0, 2, 3}, int64[1] one1 = {1}, int64[3] flat = {0, 0, 6}>
{
  x = Gather(embed, input_ids)
  x4 = Reshape(x, heads)
  rows = Transpose <perm = [0, 2, 1, 3]> (x4)
  count1 = Shape <start = 2, end = 3> (rows)
  count = Squeeze(count1)
  index = Range(zero, count, one)
  seen1 = Unsqueeze(seen, ax1)
  token = Add(seen1, index)
  new1 = Unsqueeze(new, ax1)
  valid = Less(index, new1)
  batch1 = Shape <start = 0, end = 1> (rows)
  batch = Squeeze(batch1)
  two = Constant <value_int = 2> ()
  b = Range(zero, batch, one)
  h = Range(zero, two, one)
  b4 = Unsqueeze(b, ax123)
  h4 = Unsqueeze(h, ax023)
  capacity1 = Shape <start = 2, end = 3> (past_key)
  capacity = Squeeze(capacity1)
  slot = Mod(token, capacity)
  s4 = Unsqueeze(slot, ax13)
  leading = Shape <start = 0, end = 3> (rows)
  full = Concat <axis = 0> (leading, one1)
  i0 = Expand(b4, full)
  i1 = Expand(h4, full)
  i2 = Expand(s4, full)
  where = Concat <axis = 3> (i0, i1, i2)
  valid4 = Unsqueeze(valid, ax13)
  old_key = GatherND(past_key, where)
  old_value = GatherND(past_value, where)
  new_key = Where(valid4, rows, old_key)
  new_value = Where(valid4, rows, old_value)
  present_key = ScatterND(past_key, where, new_key)
  present_value = ScatterND(past_value, where, new_value)
  keys = Cast <to = 1> (present_key)
  values = Cast <to = 1> (present_value)
  q = Cast <to = 1> (rows)
  keys_t = Transpose <perm = [0, 1, 3, 2]> (keys)
  scores = MatMul(q, keys_t)
  slots = Range(zero, capacity, one)
  token3 = Unsqueeze(token, ax2)
  visible = LessOrEqual(slots, token3)
  visible4 = Unsqueeze(visible, ax1)
  far = Constant <value = float {-1e30}> ()
  masked = Where(visible4, scores, far)
  weights = Softmax <axis = -1> (masked)
  y = MatMul(weights, values)
  y_t = Transpose <perm = [0, 2, 1, 3]> (y)
  y_flat = Reshape(y_t, flat)
  y_cast = Cast <to = TYPE> (y_flat)
  rows3 = Unsqueeze(logit_rows, ax2)
  chosen = GatherND <batch_dims = 1> (y_cast, rows3)
  head_t = Transpose <perm = [1, 0]> (head)
  logits = MatMul(chosen, head_t)
}
"""
# The text format takes no dots in names.
_NAMES = {
    "past_key": "past_key_values.0.key",
    "past_value": "past_key_values.0.value",
    "present_key": "present.0.key",
    "present_value": "present.0.value",
}


@dataclass(frozen=True)
class Tiny:
    """A package directory and its weights as float64."""

    directory: Path
    embed: NDArray[np.float64]
    head: NDArray[np.float64]

    def expected(self, tokens: list[int]) -> NDArray[np.float64]:
        """Logits [N,V] of one sequence."""
        x = self.embed[tokens].reshape(len(tokens), HEADS, HEAD_DIM)
        out = np.empty((len(tokens), VOCAB))
        for i in range(len(tokens)):
            y = np.empty((HEADS, HEAD_DIM))
            for h in range(HEADS):
                scores = [float(x[i, h] @ x[j, h]) for j in range(i + 1)]
                weights = np.exp(np.array(scores) - max(scores))
                y[h] = weights @ x[: i + 1, h] / weights.sum()
            out[i] = self.head @ y.reshape(-1)
        return out


def write(
    directory: Path, dtype: str = "float32", *, capacity: int = 1000, max_chunk: int = 8
) -> Tiny:
    """A package in `directory`; embedding and head lie in one data file at odd offsets."""
    random = np.random.default_rng(7)
    kind = _TYPES[dtype]
    embed, head = (random.standard_normal((VOCAB, WIDTH)).astype(kind) for _ in range(2))
    text = _GRAPH.replace("T[", f"{_ONNX_NAMES[dtype]}[").replace("TYPE", str(_code(dtype)))
    model = onnx.parser.parse_model(text)
    _rename(model.graph)
    data = bytearray(b"\0" * 64)
    for name, array in (("embed", embed), ("head", head)):
        tensor = onnx.TensorProto(
            name=name, data_type=_code(dtype), dims=array.shape, data_location=1
        )
        raw = array.tobytes()
        for key, value in (
            ("location", "weights.safetensors"),
            ("offset", str(len(data))),
            ("length", str(len(raw))),
        ):
            tensor.external_data.add(key=key, value=value)
        data += raw + b"\0" * 32
        model.graph.initializer.append(tensor)
    (directory / "weights.safetensors").write_bytes(bytes(data))
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    manifest(
        cache=CacheInfo(policy="full", sinks=0, window=0, capacity=capacity, keys="rotated"),
        max_chunk=max_chunk,
        kv_heads=HEADS,
        heads=HEADS,
        head_dim=HEAD_DIM,
        vocab=VOCAB,
        dtype=dtype,
        precision={"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype],
    ).save(directory)
    return Tiny(directory, embed.astype(np.float64), head.astype(np.float64))


def _rename(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        value.name = _NAMES.get(value.name, value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [_NAMES.get(name, name) for name in names]


def _code(dtype: str) -> int:
    return {"float32": 1, "float16": 10, "bfloat16": 16}[dtype]
