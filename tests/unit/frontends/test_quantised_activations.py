"""Q/DQ pairs: the oracle is numpy, which rounds exactly where the graph says it still does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ctx_export.frontends.quantised_activations import drop_idle_pairs
from tests.support.contrib_graphs import parse, run

B, S, WIDTH = 2, 5, 16
SCALE = np.float32(0.05)
GENERATOR = np.random.default_rng(8)
FEEDS = {"x": GENERATOR.normal(size=(B, S, WIDTH)).astype("f")}
WEIGHT = GENERATOR.integers(-127, 128, (WIDTH, 8), dtype=np.int8)
HELD = {
    "scale": SCALE,
    "other": np.float32(0.1),
    "zero": np.int8(3),
    "weight": WEIGHT,
    "fine": np.float32(0.01),
}
PAIR = "{0}_q = QuantizeLinear({0}, scale, zero) {0}_r = DequantizeLinear({0}_q, scale, zero)"


def rounded(x: np.ndarray) -> np.ndarray:
    steps = np.clip(np.rint(x / SCALE) + 3, -128, 127)
    return ((steps - 3) * SCALE).astype("f")


def dropped(body: str, pairs: int) -> ir.Model:
    held = {name: np.asarray(array) for name, array in HELD.items()}
    model = ir.from_proto(parse(body, FEEDS, held))
    assert drop_idle_pairs(model.graph) == pairs
    return model


PRODUCT = "w = DequantizeLinear(weight, fine)"


def test_a_product_with_quantised_weights_keeps_its_rounding() -> None:
    model = dropped(f"{PAIR.format('x')} {PRODUCT} y = MatMul(x_r, w)", 0)
    want = rounded(FEEDS["x"]) @ (WEIGHT.astype("f") * np.float32(0.01))
    np.testing.assert_allclose(run(ir.to_proto(model), FEEDS), want, atol=1e-5)


def test_other_readers_of_the_same_tensor_are_not_rounded() -> None:
    body = f"""{PAIR.format("x")} {PRODUCT} p = MatMul(x_r, w) {PAIR.format("p")}
    t = ReduceSum(x_r) y = Add(p_r, t)"""
    product = rounded(FEEDS["x"]) @ (WEIGHT.astype("f") * np.float32(0.01))
    want = product + FEEDS["x"].sum()
    got = run(ir.to_proto(dropped(body, 2)), FEEDS)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_the_product_of_two_activations_is_not_rounded() -> None:
    body = f"""{PAIR.format("x")} t = Transpose<perm = [0, 2, 1]>(x_r) {PAIR.format("t")}
    y = MatMul(x_r, t_r)"""
    want = FEEDS["x"] @ FEEDS["x"].transpose(0, 2, 1)
    np.testing.assert_allclose(run(ir.to_proto(dropped(body, 2)), FEEDS), want, atol=1e-5)


def test_the_output_keeps_its_name() -> None:
    body = "a = Neg(x) q = QuantizeLinear(a, scale, zero) y = DequantizeLinear(q, scale, zero)"
    model = dropped(body, 1)
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_array_equal(run(ir.to_proto(model), FEEDS), -FEEDS["x"])


@pytest.mark.parametrize("change", ["(x_q, other, zero)", "(x_q, scale)"])
def test_a_pair_that_is_no_rounding_stays(change: str) -> None:
    body = f"{PAIR.format('x')} y = Neg(x_r)".replace("(x_q, scale, zero)", change)
    kinds = [node.op_type for node in dropped(body, 0).graph]
    assert kinds == ["QuantizeLinear", "DequantizeLinear", "Neg"]
    (neg,) = [node for node in dropped(body, 0).graph if node.op_type == "Neg"]
    value = neg.inputs[0]
    assert value is not None and value.name == "x_r"
