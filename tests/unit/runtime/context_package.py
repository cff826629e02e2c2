"""A package with real `ctx` attention nodes, small enough to run hundreds of calls a second.

Layers of attention without rotation over a residual stream; the output is the embedding again.
With `rope_length` every logit also has a hundredth of that input.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from ctx_export.core.manifest import CacheInfo, Manifest
from ctx_export.ops.attention import AttentionVariant, sink_window_attention
from ctx_export.ops.spec import DOMAIN, PLUGIN_ATTRIBUTES
from tests.unit.runtime.fakes import manifest

VOCAB, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 13, 2, 4, 2, 4
WIDTH, KV_WIDTH = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
MAX_CHUNK, MAX_BATCH = 7, 3
FULL = CacheInfo(policy="full", sinks=0, window=0, capacity=600, keys="rotated")
RING = CacheInfo(policy="bounded", sinks=2, window=9, capacity=17, keys="rotated")


def write(directory: Path, cache: CacheInfo = FULL, *, rope_length: bool = False) -> Manifest:
    """model.onnx and manifest.json in `directory`, and the manifest."""
    stated = manifest(
        cache=cache,
        max_chunk=MAX_CHUNK,
        max_batch=MAX_BATCH,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        vocab=VOCAB,
        rope_length=rope_length,
    )
    inputs, outputs = [], []
    for tensor in stated.io:
        kind = TensorProto.INT64 if tensor.dtype == "int64" else TensorProto.FLOAT
        value = helper.make_tensor_value_info(tensor.name, kind, list(tensor.shape))
        is_output = tensor.role == "logits" or tensor.role.startswith("present")
        (outputs if is_output else inputs).append(value)
    nodes = list(_nodes(cache, rope_length=rope_length))
    graph = helper.make_graph(nodes, "model", inputs, outputs, list(_constants()))
    body = sink_window_attention(AttentionVariant(bounded=cache.policy == "bounded"))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)],
        functions=[ir.to_proto(body)],
        ir_version=10,
    )
    onnx.save(model, directory / "model.onnx")
    stated.save(directory)
    return stated


def _nodes(cache: CacheInfo, *, rope_length: bool) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Gather", ["embedding", "input_ids"], ["x.0"])
    for layer in range(LAYERS):
        for part, shape in (("q", "q_shape"), ("k", "kv_shape"), ("v", "kv_shape")):
            name = f"{part}.{layer}"
            yield helper.make_node("MatMul", [f"x.{layer}", f"w.{name}"], [f"{name}.flat"])
            yield helper.make_node("Reshape", [f"{name}.flat", shape], [f"{name}.split"])
            yield helper.make_node("Transpose", [f"{name}.split"], [name], perm=[0, 2, 1, 3])
        yield _attention(layer, cache)
        yield helper.make_node("Transpose", [f"y.{layer}"], [f"y.{layer}.t"], perm=[0, 2, 1, 3])
        yield helper.make_node("Reshape", [f"y.{layer}.t", "x_shape"], [f"y.{layer}.flat"])
        yield helper.make_node("Add", [f"x.{layer}", f"y.{layer}.flat"], [f"x.{layer + 1}"])
    yield helper.make_node("Unsqueeze", ["logit_rows", "axis_2"], ["rows"])
    yield helper.make_node("GatherND", [f"x.{LAYERS}", "rows"], ["chosen"], batch_dims=1)
    out = "plain_logits" if rope_length else "logits"
    yield helper.make_node("MatMul", ["chosen", "head"], [out])
    if rope_length:
        yield helper.make_node("Cast", ["rope_length"], ["length"], to=TensorProto.FLOAT)
        yield helper.make_node("Unsqueeze", ["length", "axes_12"], ["length.column"])
        yield helper.make_node("Mul", ["length.column", "hundredth"], ["shift"])
        yield helper.make_node("Add", ["plain_logits", "shift"], ["logits"])


def _attention(layer: int, cache: CacheInfo) -> onnx.NodeProto:
    past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    present = [f"present.{layer}.{part}" for part in ("key", "value")]
    return helper.make_node(
        "SinkWindowAttention",
        [f"q.{layer}", f"k.{layer}", f"v.{layer}", *past, "seen", "new"],
        [f"y.{layer}", *present],
        domain=DOMAIN,
        sinks=cache.sinks,
        window=cache.window,
        scale=HEAD_DIM**-0.5,
        softcap=0.0,
        alias=1,
        bounded=int(cache.policy == "bounded"),
        rotary_dim=0,
        interleaved=0,
        rotation=0,
        sink_position=0,
        layout=0,
        optional_inputs="",
        **PLUGIN_ATTRIBUTES,
    )


def _constants() -> Iterator[onnx.TensorProto]:
    random = np.random.default_rng(11)
    arrays = {"embedding": random.standard_normal((VOCAB, WIDTH)).astype(np.float32)}
    for layer in range(LAYERS):
        for part, width in (("q", WIDTH), ("k", KV_WIDTH), ("v", KV_WIDTH)):
            weight = random.standard_normal((WIDTH, width)) / WIDTH**0.5
            arrays[f"w.{part}.{layer}"] = weight.astype(np.float32)
    arrays |= {
        "head": arrays["embedding"].T.copy(),
        "hundredth": np.float32(0.01),
        "q_shape": np.array([0, 0, HEADS, HEAD_DIM]),
        "kv_shape": np.array([0, 0, KV_HEADS, HEAD_DIM]),
        "x_shape": np.array([0, 0, WIDTH]),
        "axis_2": np.array([2]),
        "axes_12": np.array([1, 2]),
    }
    for name, array in arrays.items():
        yield onnx.numpy_helper.from_array(np.asarray(array), name)
