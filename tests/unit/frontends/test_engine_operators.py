"""Standard operators for engines: the oracle is onnxruntime's kernel for the operator replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from ctx_export.core.errors import UserError
from ctx_export.frontends.engine_operators import lower_for_engine, without_standard_form
from tests.support.contrib_graphs import parse, run

B, S, WIDTH = 2, 5, 48
MS = "com.microsoft"


def random(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(6)
    return {name: generator.normal(size=shape).astype("f") for name, shape in shapes.items()}


def assert_same(body: str, feeds: Any, held: Any, atol: float = 2e-6) -> ir.Model:
    """Lower the graph, check that all its operators are standard, and compare results."""
    model = parse(body, feeds, held)
    result = ir.from_proto(model)
    lower_for_engine(result)
    assert {node.domain for node in result.graph} == {""}
    assert MS not in result.opset_imports
    assert "SimplifiedLayerNormalization" not in {node.op_type for node in result.graph}
    got = run(ir.to_proto(result), feeds)
    want = run(model, feeds)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_allclose(got, want, atol=atol, rtol=0)
    return result


@pytest.mark.parametrize(
    "body",
    [
        "y = SimplifiedLayerNormalization<axis = -1, epsilon = 0.25>(x, gamma)",
        "y = SimplifiedLayerNormalization<axis = -1, stash_type = 1>(x, gamma)",
        f"y = {MS}.SkipSimplifiedLayerNormalization<epsilon = 0.25>(x, skip, gamma)",
        f"y = {MS}.SkipSimplifiedLayerNormalization<epsilon = 0.25>(x, skip, gamma, beta)",
        f"y = {MS}.SkipLayerNormalization<epsilon = 0.25>(x, skip, gamma)",
        f"y = {MS}.SkipLayerNormalization<epsilon = 0.25>(x, skip, gamma, beta)",
        f'y = {MS}.SkipLayerNormalization<epsilon = 0.25>(x, skip, gamma, "", bias)',
        f"y = {MS}.QuickGelu(x)",
        f"y = {MS}.QuickGelu<alpha = 0.5>(x)",
        f"y = {MS}.Gelu(x)",
        f"y = {MS}.FastGelu(x)",
        f"y = {MS}.FastGelu(x, bias)",
        f"y = {MS}.BiasGelu(x, bias)",
    ],
)
def test_norms_and_activations(body: str) -> None:
    feeds = random({"x": (B, S, WIDTH), "skip": (B, S, WIDTH)})
    held = random({"gamma": (WIDTH,), "beta": (WIDTH,), "bias": (WIDTH,)})
    assert_same(body, feeds, held)


@pytest.mark.parametrize("op_type", ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"])
@pytest.mark.parametrize("small", [3e-3, 3e-6])
def test_an_epsilon_that_is_not_written(op_type: str, small: float) -> None:
    """Values whose squares are near the default epsilon, or an epsilon of a plain norm."""
    feeds = {
        name: array * np.float32(small) for name, array in random({"x": (B, S, WIDTH)}).items()
    }
    held = {**random({"gamma": (WIDTH,)}), "skip": np.zeros((B, S, WIDTH), "f")}
    assert_same(f"y = {MS}.{op_type}(x, skip, gamma)", feeds, held, atol=2e-5)


@pytest.mark.parametrize("op_type", ["SkipSimplifiedLayerNormalization", "SkipLayerNormalization"])
def test_the_sum_that_later_layers_read(op_type: str) -> None:
    feeds = random({"x": (B, S, WIDTH), "skip": (B, S, WIDTH)})
    body = f"n, _, _, total = {MS}.{op_type}<epsilon = 0.25>(x, skip, gamma) y = Mul(n, total)"
    assert_same(body.replace("_, _", '"", ""'), feeds, random({"gamma": (WIDTH,)}), atol=1e-5)


def test_half_precision_keeps_its_type() -> None:
    feeds = {name: a.astype(np.float16) for name, a in random({"x": (B, S, WIDTH)}).items()}
    assert_same(f"y = {MS}.QuickGelu(x)", feeds, {}, atol=4e-3)


def packed_weights(bits: int, depth: int, block: int, rows: int = 7) -> dict[str, np.ndarray]:
    blocks = -(-depth // block)
    generator = np.random.default_rng(7)
    packed = generator.integers(0, 256, (rows, blocks, block * bits // 8), dtype=np.uint8)
    scales = generator.uniform(0.01, 0.1, (rows, blocks)).astype("f")
    return {"packed": packed, "scales": scales}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32], ids=["whole blocks", "a padded block"])
@pytest.mark.parametrize("extra", ["", ',"","",bias'], ids=["", "bias"])
def test_weights_of_few_bits(bits: int, block: int, extra: str) -> None:
    held = {**packed_weights(bits, WIDTH, block), "bias": np.linspace(-1, 1, 7).astype("f")}
    attributes = f"K={WIDTH},N=7,bits={bits},block_size={block}"
    body = f"y = {MS}.MatMulNBits<{attributes}>(x,packed,scales{extra})"
    result = assert_same(
        body, random({"x": (B, S, WIDTH)}), held, atol=2e-4 if bits == 8 else 2e-5
    )
    (weight,) = [node.inputs[0] for node in result.graph if node.op_type == "DequantizeLinear"]
    assert weight is not None and weight.dtype in (ir.DataType.INT4, ir.DataType.INT8)


def test_zero_points_in_the_middle_are_none() -> None:
    held = {**packed_weights(4, WIDTH, 16), "points": np.full(14, 0x88, np.uint8)}
    held["points"][1::2] = 0x08  # three blocks a row: the last nibble is padding
    body = f"y = {MS}.MatMulNBits<K={WIDTH},N=7,bits=4,block_size=16>(x,packed,scales,points)"
    assert_same(body, random({"x": (B, S, WIDTH)}), held, atol=2e-5)


@pytest.mark.parametrize(
    ("attributes", "inputs", "reason"),
    [
        ("bits=2", "packed,scales", "bits = 2"),
        ("bits=4,weight_prepacked=1", "packed,scales", "weight_prepacked = 1"),
        ("bits=4", "packed,scales,points", "zero_points = values from 3 to 8: .*symmetric"),
        ("bits=4", 'packed,scales,"",order', "g_idx = order: .*act_order"),
        ("bits=4", "x,scales", "B = computed"),
    ],
)
def test_weights_that_an_engine_cannot_read(attributes: str, inputs: str, reason: str) -> None:
    held = {
        **packed_weights(4, WIDTH, 32),
        "points": np.array([0x88] * 6 + [0x83], np.uint8),
        "order": np.zeros(WIDTH, np.int32),
    }
    body = f"y = {MS}.MatMulNBits<K={WIDTH},N=7,block_size=32,{attributes}>(x,{inputs})"
    model = ir.from_proto(parse(body, random({"x": (B, S, WIDTH)}), held))
    with pytest.raises(UserError, match=rf"MatMulNBits \(y\) has {reason}"):
        lower_for_engine(model)


def test_an_operator_without_a_standard_form_is_named() -> None:
    body = f"g = {MS}.QuickGelu(x) y = {MS}.QMoE(g)"
    model = ir.from_proto(parse(body, random({"x": (B, S, WIDTH)}), {}))
    assert without_standard_form(model.graph) == ["QMoE"]
    with pytest.raises(UserError, match=r"^QMoE \(y\) of com\.microsoft .*--engine none"):
        lower_for_engine(model)
