"""The function bodies in a stock onnxruntime against the float64 reference, optimisation off."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ctx_export.core.cache_type import cache_type
from ctx_export.ops.attention import AttentionVariant, sink_window_attention
from ctx_export.ops.reference import AttentionCase, quantised, rotate
from ctx_export.ops.reference import sink_window_attention as reference_attention
from ctx_export.ops.rotary import scaled_rotary_embedding
from ctx_export.ops.spec import (
    DOMAIN,
    PLUGIN_ATTRIBUTES,
    SCALED_ROTARY_EMBEDDING,
    Layout,
    Rotation,
)
from ctx_export.ops.spec import SINK_WINDOW_ATTENTION as SPEC

DTYPES = {np.float32: ir.DataType.FLOAT, np.float16: ir.DataType.FLOAT16}


def run(function: ir.Function, feeds: dict[str, np.ndarray], attributes: dict[str, Any]) -> list:
    """One call of `function` through onnxruntime with its graph optimisation off."""
    inputs = [
        ir.Value(
            name=name, type=ir.TensorType(ir.tensor(value).dtype), shape=ir.Shape(value.shape)
        )
        for name, value in feeds.items()
    ]
    node = ir.node(
        function.name,
        inputs,
        {**attributes, **PLUGIN_ATTRIBUTES},
        domain=DOMAIN,
        num_outputs=len(function.outputs),
    )
    # Outputs have the type of the first input, caches that of the past ones.
    types = [inputs[0].type, *(v.type for v in inputs if v.name in ("past_key", "past_value"))]
    for value, source, kind in zip(node.outputs, function.outputs, types, strict=False):
        value.name = f"out_{source.name or id(source)}"
        value.type = kind
    graph = ir.Graph(
        inputs, node.outputs, nodes=[node], opset_imports={"": 23, DOMAIN: 1}, name="g"
    )
    model = ir.Model(graph, ir_version=10, functions=[function])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run_with_ort_values(
        None, {name: ort_value(value) for name, value in feeds.items()}
    )
    return [numpy_value(value) for value in values]


def ort_value(array: np.ndarray) -> Any:
    """`array` for onnxruntime, which takes a float8 tensor as its bytes."""
    if array.dtype == ml_dtypes.float8_e4m3fn:
        element = ir.DataType.FLOAT8E4M3FN.value
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint8), element)
    return ort.OrtValue.ortvalue_from_numpy(array)


def numpy_value(value: Any) -> np.ndarray:
    if value.data_type() != "tensor(float8e4m3fn)":
        return value.numpy()
    size = int(np.prod(value.shape()))
    raw = (ctypes.c_uint8 * size).from_address(value.data_ptr())
    return np.array(raw, np.uint8).reshape(value.shape()).view(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(80, 80), (128, 32), (8, 2)])
def test_rotary_body_matches_float64(dtype, interleaved, head_dim, rotary_dim):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, head_dim)).astype(dtype)
    positions = rng.integers(0, 1 << 33, (2, 5))
    inv_freq = (10000.0 ** (-np.arange(rotary_dim // 2) * 2 / rotary_dim)).astype(np.float32)[None]
    multiplier = np.array([1.25], np.float32)
    attributes = {"rotary_dim": rotary_dim, "interleaved": interleaved}
    names = SCALED_ROTARY_EMBEDDING.inputs
    feeds = dict(zip(names, (x, positions, inv_freq, multiplier), strict=True))
    (y,) = run(scaled_rotary_embedding(), feeds, attributes)
    expected = rotate(
        x, positions, inv_freq, multiplier, rotary_dim=rotary_dim, interleaved=bool(interleaved)
    )
    assert y.dtype == dtype and y.shape == x.shape
    # float32: 1e-6 rad of angle on values up to 5; float16: half a unit in the last place.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 if dtype == np.float32 else 4e-3)


def random_case(rng: np.random.Generator, dtype: type, **choice: Any) -> AttentionCase:
    """A batch of three with different lengths, in a state a session can reach."""
    bounded, sinks, window = choice["bounded"], choice["sinks"], choice["window"]
    rows, dim, kv_heads, groups = choice["rows"], 16, 2, 3
    capacity = sinks + window + rows - 1 if bounded else 40
    capacity = max(capacity, sinks + rows)
    longest = 5 * capacity if bounded else capacity - rows
    capacity *= choice["spare"]  # a cache far from full is read through a slice

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    optional = choice["optional"]
    seen = np.array([0, longest // 3, longest])
    return AttentionCase(
        q=normal(3, kv_heads * groups, rows, dim),
        k=normal(3, kv_heads, rows, dim),
        v=normal(3, kv_heads, rows, dim),
        past_key=normal(3, kv_heads, capacity, dim),
        past_value=normal(3, kv_heads, capacity, dim),
        seen=seen,
        new=np.array([rows, max(rows - 2, 0), (rows + 1) // 2]),
        sinks=sinks,
        window=window,
        scale=0.3,
        softcap=choice["softcap"],
        bounded=bounded,
        sink_q=normal(3, kv_heads * groups, rows, dim) if "sink_q" in optional else None,
        inv_freq=rng.uniform(0, 1, (1, 4)).astype(np.float32) if "inv_freq" in optional else None,
        multiplier=np.array([1.5], np.float32) if "inv_freq" in optional else None,
        head_sink=rng.standard_normal(6).astype(np.float32) if "head_sink" in optional else None,
        rotary_dim=8 if "inv_freq" in optional else 0,
    )


def body_outputs(case: AttentionCase, optional: tuple[str, ...]) -> list[np.ndarray]:
    attributes = {
        "sinks": case.sinks,
        "window": case.window,
        "scale": case.scale,
        "softcap": case.softcap,
        "alias": 0,
        "bounded": int(case.bounded),
        "rotary_dim": case.rotary_dim,
        "interleaved": int(case.interleaved),
        "rotation": int(case.rotation),
        "sink_position": case.sink_position,
        "layout": int(case.layout),
        "optional_inputs": ",".join(optional),
    }
    variant = AttentionVariant(
        optional=optional,
        bounded=case.bounded,
        softcap=case.softcap != 0,
        rotation=case.rotation,
        sink_position=case.sinks > 0 and case.rotation != Rotation.KEYS_ON_READ,
        layout=case.layout,
        cache_type=cache_type(case.cache_type),
    )
    feeds = {name: getattr(case, name) for name in SPEC.inputs + optional}
    return run(sink_window_attention(variant), feeds, attributes)


SCALES = ("key_scale", "value_scale")
UNSCALED = tuple(name for name in SPEC.optional if name not in SCALES)
OPTIONAL = [(), ("sink_q",), ("inv_freq", "multiplier"), ("head_sink",), UNSCALED]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("optional", OPTIONAL, ids=lambda names: "+".join(names) or "plain")
@pytest.mark.parametrize(
    ("bounded", "sinks", "window", "rows", "softcap", "spare"),
    [
        (False, 0, 0, 1, 0.0, 1),
        (False, 0, 0, 1, 0.0, 3),
        (False, 0, 0, 7, 0.0, 1),
        (False, 0, 5, 7, 2.0, 3),
        (False, 4, 5, 7, 0.0, 1),
        (True, 0, 1, 1, 0.0, 1),
        (True, 4, 1, 3, 2.0, 1),
        (True, 0, 17, 5, 0.0, 1),
        (True, 4, 17, 1, 0.0, 1),
        (True, 4, 17, 5, 0.0, 7),
    ],
)
def test_attention_body_matches_float64(
    dtype, optional, bounded, sinks, window, rows, softcap, spare
):
    rng = np.random.default_rng(rows + 10 * window + 100 * sinks)
    case = random_case(
        rng,
        dtype,
        bounded=bounded,
        sinks=sinks,
        window=window,
        rows=rows,
        softcap=softcap,
        spare=spare,
        optional=optional,
    )
    outputs = body_outputs(case, optional)
    expected = reference_attention(case)
    for got, want, name in zip(outputs, expected, SPEC.outputs, strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        # Values of size 1: float32 sums of products of 16, float16 with its 2^-11 of rounding.
        tolerance = 0 if name != "y" else (2e-5 if dtype == np.float32 else 2e-2)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=name)


NUMBERS = {"float8e4m3fn": ml_dtypes.float8_e4m3fn, "int8": np.int8}


def quantised_case(case: AttentionCase, kind: str) -> AttentionCase:
    """`case` over caches of `kind`: random numbers of it, scales that saturate some elements."""
    rng = np.random.default_rng(17)
    elements = NUMBERS[kind]
    held = [
        (rng.uniform(-100, 100, past.shape)).astype(elements)
        for past in (case.past_key, case.past_value)
    ]
    largest = 448 if kind == "float8e4m3fn" else 127
    scales = [
        (rng.uniform(1, 3, past.shape[1]) / largest).astype(np.float32)
        for past in (case.past_key, case.past_value)
    ]
    return replace(
        case,
        past_key=held[0],
        past_value=held[1],
        cache_type=kind,
        key_scale=scales[0],
        value_scale=scales[1],
    )


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("optional", OPTIONAL, ids=lambda names: "+".join(names) or "plain")
@pytest.mark.parametrize(
    ("bounded", "sinks", "window", "rows", "softcap", "spare"),
    [
        (False, 0, 0, 1, 0.0, 3),
        (False, 0, 0, 7, 0.0, 1),
        (True, 4, 17, 1, 0.0, 1),
        (True, 4, 17, 5, 2.0, 7),
    ],
)
def test_quantised_body_matches_float64(
    kind, dtype, optional, bounded, sinks, window, rows, softcap, spare
):
    rng = np.random.default_rng(rows + 10 * window + 100 * sinks)
    choice = {"bounded": bounded, "sinks": sinks, "window": window, "rows": rows}
    choice |= {"softcap": softcap, "spare": spare, "optional": optional}
    case = quantised_case(random_case(rng, dtype, **choice), kind)
    y, *caches = body_outputs(case, (*optional, *SCALES))
    held = {name: getattr(case, name).astype(np.float64) for name in ("past_key", "past_value")}
    expected, *expected_caches = reference_attention(replace(case, **held))
    for got, want in zip(caches, expected_caches, strict=True):
        assert got.dtype == NUMBERS[kind] and got.shape == want.shape
        np.testing.assert_array_equal(got.astype(np.float64), want)
    assert y.dtype == dtype and y.shape == expected.shape
    # As above; in float16 keys of up to 3 are rounded after they are read, as float16 caches are.
    tolerance = 2e-5 if dtype == np.float32 else 4e-2
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", NUMBERS)
def test_every_element_is_kept_and_every_rounding_is_that_of_the_format(kind):
    """Oracles: ml_dtypes for float8, numpy's rounding for int8."""
    elements = np.arange(256, dtype=np.uint8).view(NUMBERS[kind])
    rng = np.random.default_rng(5)
    between = np.concatenate([rng.uniform(-500, 500, 400), rng.uniform(-0.05, 0.05, 200)])
    exact = elements.astype(np.float32)
    ties = (exact[:-1] + exact[1:]) / 2
    numbers = np.concatenate([between, ties, [448, 463, 464, 465, 1e30, np.inf, -np.inf, 127.5]])
    numbers = numbers[np.isfinite(numbers) | (kind == "float8e4m3fn")].astype(np.float32)
    dim = 8
    rows = -(-len(numbers) // dim)
    k = np.resize(numbers, (1, 1, rows, dim))
    past = np.resize(elements, (1, 1, 32 + rows, dim))
    case = AttentionCase(
        q=np.zeros_like(k),
        k=k,
        v=k,
        past_key=past,
        past_value=past,
        seen=np.array([32]),
        new=np.array([rows]),
        cache_type=kind,
        key_scale=np.ones(1, np.float32),
        value_scale=np.ones(1, np.float32),
    )
    present = body_outputs(case, SCALES)[1].astype(np.float32)
    np.testing.assert_array_equal(present[:, :, :32], past[:, :, :32].astype(np.float32))
    largest = 448 if kind == "float8e4m3fn" else 127
    clipped = np.clip(k, -largest, largest)
    rounded = clipped.astype(NUMBERS[kind]) if largest == 448 else np.rint(clipped)
    np.testing.assert_array_equal(present[:, :, 32:], rounded.astype(np.float32))


def test_the_reference_rounds_to_the_numbers_of_the_format():
    """Oracle: ml_dtypes; ties, subnormals and saturation included."""
    exact = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    near = np.concatenate([exact, (exact[:-1] + exact[1:]) / 2, exact * 1.01, [447, 464, 1e9]])
    given = np.concatenate([near, -near])
    found = quantised(given, "float8e4m3fn")
    clipped = np.clip(given, -448, 448).astype(np.float32)
    expected = clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(quantised(np.array([np.nan]), "float8e4m3fn")).all()
    with pytest.raises(ValueError, match="cache type 'int4' is unknown"):
        quantised(given, "int4")


def test_row_past_a_full_cache_is_nan_and_writes_nothing():
    rng = np.random.default_rng(3)
    case = random_case(
        rng,
        np.float32,
        bounded=False,
        sinks=0,
        window=0,
        rows=4,
        softcap=0.0,
        spare=1,
        optional=(),
    )
    case.seen[:] = [0, 38, 40]
    case.new[:] = [4, 4, 1]
    y, present_key, _ = body_outputs(case, ())
    expected, expected_key, _ = reference_attention(case)
    assert np.isnan(y[1, :, 2:]).all() and np.isnan(y[2, :, 0]).all()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_allclose(np.nan_to_num(y), np.nan_to_num(expected), rtol=0, atol=2e-5)
    np.testing.assert_array_equal(present_key, expected_key)


TABLES = ("inv_freq", "multiplier")
ROTATIONS = [Rotation.ON_WRITE, Rotation.QUERY_AND_KEYS_ON_READ]


def rotating_case(dtype: type, rotation: Rotation, sink_position: int) -> AttentionCase:
    """Sinks and a wrapped ring, a table of its own for every sequence."""
    rng = np.random.default_rng(7)
    choice = {"bounded": True, "sinks": 4, "window": 9, "rows": 5, "softcap": 0.0, "spare": 1}
    case = random_case(rng, dtype, optional=TABLES, **choice)
    return replace(
        case,
        inv_freq=rng.uniform(0, 1, (3, 4)).astype(np.float32),
        multiplier=rng.uniform(0.5, 1.5, 3).astype(np.float32),
        interleaved=sink_position > 0,
        rotation=rotation,
        sink_position=sink_position,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("sink_position", [0, 3, 12])
def test_attention_that_rotates_matches_float64(dtype, rotation, sink_position):
    case = rotating_case(dtype, rotation, sink_position)
    y, key, value = body_outputs(case, TABLES)
    expected, expected_key, expected_value = reference_attention(case)
    assert y.dtype == key.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5 if dtype == np.float32 else 2e-2)
    # Values up to 8, rounded once to the type.
    rounding = 1e-6 if dtype == np.float32 else 4e-3
    written = rotation == Rotation.ON_WRITE
    np.testing.assert_allclose(key, expected_key, rtol=0, atol=rounding if written else 0)
    np.testing.assert_array_equal(value, expected_value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("sink_position", [0, 3, 12])
def test_attention_that_rotates_equals_rotations_before_it(dtype, rotation, sink_position):
    """To the last bit: what is rotated is rounded to its type before it is used or cached."""
    case = rotating_case(dtype, rotation, sink_position)
    positions = case.seen[:, None] + np.arange(case.q.shape[2])

    def turned(x: np.ndarray, where: np.ndarray) -> np.ndarray:
        feeds = {"x": x, "positions": where, "inv_freq": case.inv_freq}
        attributes = {"rotary_dim": 8, "interleaved": int(case.interleaved)}
        rotary = scaled_rotary_embedding()
        return run(rotary, {**feeds, "multiplier": case.multiplier}, attributes)[0]

    on_write = rotation == Rotation.ON_WRITE
    before = replace(
        case,
        q=turned(case.q, positions),
        k=turned(case.k, positions) if on_write else case.k,
        sink_q=turned(case.q, np.minimum(positions, sink_position or 1 << 40)),
        rotation=Rotation.KEYS_ON_READ,
        sink_position=0,
        rotary_dim=0 if on_write else 8,
    )
    optional = ("sink_q",) if on_write else ("sink_q", *TABLES)
    for got, want in zip(body_outputs(case, TABLES), body_outputs(before, optional), strict=True):
        np.testing.assert_array_equal(got, want)


def by_token(x: np.ndarray) -> np.ndarray:
    """[batch, head, token, dim] as [batch, token, head · dim]."""
    return np.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("layout", [Layout.TOKEN_MAJOR, Layout.PACKED])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_layouts_differ_in_nothing_but_where_elements_lie(dtype, layout, rotation):
    case = rotating_case(dtype, rotation, 12)
    q, k, v = (by_token(x) for x in (case.q, case.k, case.v))
    if layout == Layout.PACKED:
        q = k = v = np.concatenate([q, k, v], axis=2)
    given = replace(case, q=q, k=k, v=v, layout=layout)
    y, key, value = body_outputs(given, TABLES)
    same_y, same_key, same_value = body_outputs(case, TABLES)
    np.testing.assert_array_equal(y, by_token(same_y))
    np.testing.assert_array_equal(key, same_key)
    np.testing.assert_array_equal(value, same_value)
    expected, *_ = reference_attention(given)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5 if dtype == np.float32 else 2e-2)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"optional": ("multiplier", "inv_freq")}, "ordered subset"),
        ({"rotation": Rotation.ON_WRITE}, "give inv_freq and multiplier and no sink_q"),
        (
            {"rotation": Rotation.QUERY_AND_KEYS_ON_READ, "optional": ("sink_q", *TABLES)},
            "no sink_q",
        ),
        ({"sink_position": True}, "give sink_q instead"),
        ({"layout": Layout.TOKEN_MAJOR, "optional": ("sink_q",)}, "given by head only"),
    ],
)
def test_a_variant_without_what_it_needs_is_refused(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        AttentionVariant(**wrong)
