"""Shapes that no file says: the oracle is the shape of what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ctx_export.frontends.contrib_operators import lower
from ctx_export.frontends.shapes import infer_shapes
from tests.support.contrib_graphs import parse, run

B, S, HEADS, D = 2, 5, 4, 8
WIDTH = HEADS * D
MS = "com.microsoft"
GENERATOR = np.random.default_rng(9)
FEEDS = {
    "x": GENERATOR.normal(size=(B, S, WIDTH)).astype("f"),
    "ids": np.array([[0, 2, 1, 2, 0]] * B),
}
HELD = {
    "gamma": np.ones(WIDTH, "f"),
    "weight": np.ones((WIDTH, 6), "f"),
    "table": np.ones((3, WIDTH), "f"),
    "apart": np.array([0, 0, -1, D]),
    "by_heads": np.array([0, 0, HEADS, -1]),
    "joined": np.array([0, 0, WIDTH]),
    "flat": np.array([-1, WIDTH]),
    "halved": np.array([1, S, -1, D]),  # twice as many heads in half as many rows
    "rest": np.array([-1]),
    "head_dim": np.array([D]),
    "packed": np.zeros((6, 1, 16), np.uint8),
    "scales": np.ones((6, 1), "f"),
    "cos": np.ones((S, D // 2), "f"),
    "sin": np.zeros((S, D // 2), "f"),
    "zero": np.array([0]),
    "second": np.array([2]),
    "first": np.array(0),
    "flag": np.array(True),
}
NORM = "n = SimplifiedLayerNormalization(x, gamma)"


def inferred(body: str) -> tuple[ir.Model, ir.Value]:
    model = ir.from_proto(parse(body, FEEDS, HELD))
    output = model.graph.outputs[0]
    output.shape = None
    for node in model.graph:
        infer_shapes(node)
    return model, output


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"{NORM} y = Identity(n)", "[batch,tokens,32]"),
        (f"{NORM} y = MatMul(n, weight)", "[batch,tokens,6]"),
        (f"{NORM} y = {MS}.MatMulNBits<K=32,N=6,bits=4,block_size=32>(n, packed, scales)",
         "[batch,tokens,6]"),
        (f"{NORM} y = Add(n, gamma)", "[batch,tokens,32]"),
        (f"{NORM} y = Mul(gamma, n)", "[batch,tokens,32]"),
        (f"{NORM} y = Where(flag, n, x)", "[batch,tokens,32]"),
        ("e = Gather(table, ids) y = Neg(e)", "[batch,tokens,32]"),
        (f"{NORM} y = Reshape(n, apart)", "[batch,tokens,4,8]"),
        (f"{NORM} y = Reshape(n, by_heads)", "[batch,tokens,4,8]"),
        (f"{NORM} y = Reshape(n, halved)", "[1,5,None,8]"),
        (f"{NORM} y = Reshape(n, flat)", "[None,32]"),
        (f"{NORM} h = Reshape(n, apart) y = Transpose<perm = [0, 2, 1, 3]>(h)",
         "[batch,4,tokens,8]"),
        (f"{NORM} h = Reshape(n, apart) y = Reshape(h, joined)", "[batch,tokens,32]"),
        (f"{NORM} lead = Shape<start = 0, end = 2>(x) s = Concat<axis = 0>(lead, rest, head_dim)"
         " y = Reshape(n, s)", "[batch,tokens,4,8]"),
        (f"{NORM} all = Shape(x) lead = Slice(all, zero, second)"
         " s = Concat<axis = 0>(lead, rest, head_dim) y = Reshape(n, s)", None),
        (f"{NORM} one = Shape<start = 0, end = 1>(x) two = Shape<start = 1, end = 2>(x)"
         " s = Concat<axis = 0>(one, two, rest, head_dim) y = Reshape(n, s)",
         "[batch,tokens,4,8]"),
        (f"{NORM} all = Shape(n) one = Gather(all, first) two = Shape<start = 1, end = 2>(x)"
         " lead = Unsqueeze(one, zero)"
         " s = Concat<axis = 0>(lead, two, rest, head_dim) y = Reshape(n, s)",
         "[batch,tokens,4,8]"),
    ],
)  # fmt: skip
def test_shapes_are_those_that_are_computed(body: str, expected: str | None) -> None:
    model, output = inferred(body)
    if expected is None:  # nobody knows how many numbers a part has: nothing is guessed
        assert output.shape is None
        return
    assert str(output.shape) == expected
    sizes = run(ir.to_proto(model), FEEDS).shape
    for known, size in zip(output.shape or [], sizes, strict=True):
        text = str(known)
        bound = {"batch": B, "tokens": S, "None": size}
        assert bound.get(text, known) == size


@pytest.mark.parametrize("op_type", ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"])
def test_the_sum_of_a_skip_has_the_shape_of_its_terms(op_type: str) -> None:
    body = f'a, "", "", total = {MS}.{op_type}(x, x, gamma) y = Add(a, total)'
    model, output = inferred(body)
    assert str(output.shape) == "[batch,tokens,32]"
    outputs = model.graph.node(0).outputs
    assert [str(value.shape) for value in outputs[::3]] == ["[batch,tokens,32]"] * 2
    # In float16 they are float32 all the same: a type that is not known must not be written.
    assert [value.type for value in outputs[1:3]] == [None, None]


def test_a_rotation_in_a_file_without_shapes() -> None:
    body = f"""{NORM} h = Reshape(n, apart) t = Transpose<perm = [0, 2, 1, 3]>(h)
    r = {MS}.RotaryEmbedding(t, ids, cos, sin) y = Transpose<perm = [0, 2, 1, 3]>(r)"""
    model = ir.from_proto(parse(body, FEEDS, HELD))
    model.graph.outputs[0].shape = None
    lower(model)
    (rotation,) = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert rotation.domain == "" and str(rotation.outputs[0].shape) == "[batch,4,tokens,8]"
