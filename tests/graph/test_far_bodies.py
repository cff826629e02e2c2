"""The bodies of the attentions that look behind a window, in a stock onnxruntime with optimisation
off. Oracle: the float64 references, call by call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx.inliner import inline_local_functions

from ctx_export.ops import landmark as landmark_body
from ctx_export.ops.bodies import FAR_BODIES
from ctx_export.ops.builder import BodyBuilder
from ctx_export.ops.far import FarVariant
from ctx_export.ops.landmark import LandmarkVariant
from ctx_export.ops.reference_far import FarCase, LandmarkCase, landmark_margins
from ctx_export.ops.rotary import rotary_run
from ctx_export.ops.spec import OPERATORS, Layout
from tests.support.body_sessions import BodySession, body_model
from tests.support.far_calls import (
    FarRule,
    calls,
    dual_chunk,
    feed,
    landmark,
    make_text,
    memory,
    self_extend,
)

Array = NDArray[Any]
SIZES = (1, 7, 16, 64)
RULES = [
    *(self_extend(size, 2 * size) for size in SIZES),
    *(dual_chunk(size, size + 5) for size in SIZES),
    dual_chunk(7, 30),
    *(memory(4 * (size % 2), size, size, 3) for size in SIZES),
    memory(0, 9, 4, 1, rows=20),
    *(landmark(4 * (size % 2), size, size, 2) for size in SIZES),
    landmark(4, 20, 7, 2, shared=1),
    landmark(2, 5, 4, 40),
    *(landmark(3 * (size % 2), 9, size, 2, landmark=1) for size in (2, 7, 16)),
    landmark(2, 1, 7, 3, shared=1, landmark=1),
]
SMALL = [
    self_extend(4, 8),
    dual_chunk(7, 12),
    memory(2, 5, 4, 3),
    landmark(2, 5, 4, 2),
    landmark(2, 5, 4, 2, shared=1),
    landmark(2, 5, 4, 2, landmark=1),
]
# Values of size 1: float32 sums of products of 16, float16 with its 2^-11 of rounding.
TOLERANCE = {np.float32: 1e-5, np.float16: 1e-2}


def lengths_of(rule: FarRule) -> list[int]:
    longest = 140 if 64 in rule.numbers.values() else 70
    if rule.name == "memory":  # the ring wraps three times
        longest = 3 * rule.capacity(0)
    return [longest, 5, longest // 2]


def reference_step(rule: FarRule, margin: float) -> Any:
    """The rule's reference; a landmark's choices must all be clear by `margin`."""

    def step(case: FarCase) -> Any:
        if isinstance(case, LandmarkCase):
            assert landmark_margins(case).min() > margin
        return rule.reference(case)

    return step


def check(text: FarCase, rule: FarRule, lengths: list[int], *, step: Any = None) -> None:
    """A body fed by chunks against the reference fed by the same chunks."""
    dtype = text.q.dtype.type
    step = BodySession(text) if step is None else step
    chunks = calls(rule, lengths)
    y, last = feed(step, text, chunks, rule.rows)
    want, expected = feed(reference_step(rule, 1e-5), text, chunks, rule.rows)
    for b, length in enumerate(lengths):
        assert np.isfinite(y[b, :, :length]).all()
    np.testing.assert_allclose(y, want, rtol=0, atol=TOLERANCE[dtype])
    for got, wanted in (
        (last.past_key, expected.past_key),
        (last.past_value, expected.past_value),
    ):
        assert got.dtype == dtype
        # Means of values below 8 from float32 sums: one unit in the last place.
        unit = np.spacing(dtype(4)).astype(np.float64)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=unit)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_chunks_match_float64(rule):
    lengths = lengths_of(rule)
    check(make_text(rule, lengths, dtype=np.float32), rule, lengths)


@pytest.mark.parametrize("rule", SMALL, ids=str)
def test_single_tokens_match_float64(rule):
    """Sequences of much the same length, so that near keys begin late for all of them."""
    rule, lengths = replace(rule, rows=1), [50, 47, 52]
    check(make_text(rule, lengths, dtype=np.float32), rule, lengths)


@pytest.mark.parametrize("rule", SMALL, ids=str)
def test_float16_matches_float64(rule):
    lengths = [60, 1, 33]
    check(make_text(rule, lengths, dtype=np.float16), rule, lengths)


@pytest.mark.parametrize("rule", SMALL, ids=str)
def test_bfloat16_has_the_types_of_the_standard(rule):
    """onnxruntime's CPU provider has no bfloat16; oracle: onnx's own type inference, strict."""
    text = make_text(rule, [9], dtype=np.float32, softcap=1.0)
    names = ("q", "k", "v", "past_key", "past_value")
    low = {name: getattr(text, name).astype(ml_dtypes.bfloat16) for name in names}
    model = inline_local_functions(ir.to_proto(body_model(replace(text, **low))))
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


OPTIONS: list[dict[str, Any]] = [
    {"rotary_dim": 0},
    {"rotary_dim": 6, "interleaved": True, "heads": (3, 1)},
    {"softcap": 2.0, "head_sink": np.array([0.5, -1, 2, 0], np.float32), "dim": 8},
]


@pytest.mark.parametrize("choice", OPTIONS, ids="-".join)
@pytest.mark.parametrize("rule", SMALL, ids=str)
def test_options_match_float64(rule, choice):
    if rule.numbers.get("landmark"):
        choice = {name: value for name, value in choice.items() if name != "head_sink"}
    lengths = [60, 1, 33]
    check(make_text(rule, lengths, dtype=np.float32, **choice), rule, lengths)


@pytest.mark.parametrize("rule", SMALL, ids=str)
def test_present_may_share_memory_with_past(rule):
    """To the last bit, over several wraps and blocks."""
    lengths = [60, 9, 33]
    text = make_text(rule, lengths, dtype=np.float32)
    session, chunks = BodySession(text), calls(rule, lengths)
    y, last = feed(session, text, chunks, rule.rows)
    shared_y, shared = feed(session.aliased, text, chunks, rule.rows)
    np.testing.assert_array_equal(shared_y, y)
    np.testing.assert_array_equal(shared.past_key, last.past_key)
    np.testing.assert_array_equal(shared.past_value, last.past_value)


def by_token(x: Array) -> Array:
    """[batch, head, token, dim] as [batch, token, head · dim]."""
    return np.moveaxis(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)


@pytest.mark.parametrize("layout", [Layout.TOKEN_MAJOR, Layout.PACKED])
@pytest.mark.parametrize("rule", SMALL, ids=str)
def test_layouts_differ_in_nothing_but_where_elements_lie(rule, layout):
    rule = replace(rule, rows=30) if rule.name != "memory" else memory(2, 5, 4, 3, rows=30)
    text = make_text(rule, [30, 1, 12], dtype=np.float32)
    q, k, v = (by_token(x) for x in (text.q, text.k, text.v))
    if layout == Layout.PACKED:
        q = k = v = np.concatenate([q, k, v], axis=2)
    given = replace(text, q=q, k=k, v=v, layout=layout)
    y, key, value = BodySession(given)(given)
    same_y, same_key, same_value = BodySession(text)(text)
    np.testing.assert_array_equal(y, by_token(same_y))
    np.testing.assert_array_equal(key, same_key)
    np.testing.assert_array_equal(value, same_value)


@pytest.mark.parametrize("rule", [r for r in SMALL if r.name != "memory"], ids=str)
def test_rows_past_a_full_cache_are_nan_and_written_nowhere(rule):
    text = make_text(rule, [20, 20, 9], dtype=np.float32)
    cut = replace(text, past_key=text.past_key[:, :, :20], past_value=text.past_value[:, :, :20])
    late = replace(cut, seen=np.array([13, 17, 40]), new=np.array([10, 0, 1]))
    session = BodySession(cut)
    for case in (cut, late, replace(late, new=np.array([7, 20, 0]))):
        y, key, value = session(case)
        want, want_key, want_value = rule.reference(case)
        assert case is not late or (np.isnan(want[0]).any() and np.isnan(want[2]).any())
        np.testing.assert_allclose(y, want, rtol=0, atol=1e-5)
        np.testing.assert_allclose(key, want_key, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(value, want_value)


@pytest.mark.parametrize("rule", SMALL[3:], ids=str)
def test_landmark_passes_join(rule, monkeypatch):
    """One row a pass equals all rows in one."""
    monkeypatch.setattr(landmark_body, "_PASS_ELEMENTS", 1)
    lengths = [60, 1, 33]
    check(make_text(rule, lengths, dtype=np.float32), rule, lengths)


@pytest.mark.parametrize("rule", [landmark(2, 3, 4, 2), landmark(2, 3, 4, 2, landmark=1)], ids=str)
def test_landmark_decoding_reads_nothing_but_representatives_and_chosen_blocks(rule):
    """What lies between may be NaN: it is neither read nor weighed with 0."""
    text = make_text(rule, [60], dtype=np.float32)
    _, last = feed(rule.reference, text, [np.array([7])] * 8, 7)
    caches = {name: getattr(last, name).astype(np.float32) for name in ("past_key", "past_value")}
    case = replace(
        last,
        **caches,
        **{name: getattr(text, name)[:, :, 56:57] for name in "qkv"},
        seen=np.array([56]),
        new=np.array([1]),
    )
    session = BodySession(case)
    y, *_ = session(case)
    np.testing.assert_allclose(y, rule.reference(case)[0], rtol=0, atol=1e-5)
    stride = 4 + (rule.numbers["landmark"] == 0)
    unread = 0
    for block in range(13):
        spoiled = {name: value.copy() for name, value in caches.items()}
        for value in spoiled.values():
            value[0, :, 2 + block * stride : 5 + block * stride] = np.nan
        other, *_ = session(replace(case, **spoiled))
        unread += np.array_equal(other, y)
    # Of 13 candidates four heads read two each.
    assert unread >= 13 - 4 * 2


def test_landmark_of_equal_blocks_chooses_the_earliest():
    rule = landmark(0, 1, 4, 2)
    text = make_text(rule, [30], dtype=np.float32, rotary_dim=0)
    case = replace(text, k=np.ones_like(text.k))
    y, *_ = BodySession(case)(case)
    np.testing.assert_allclose(y, rule.reference(case)[0], rtol=0, atol=1e-5)


def test_positions_in_a_run_have_exact_angles():
    """Oracle: float64 cosines of every position, to 2^33."""
    names = ("start", "step", "count", "inv_freq", "multiplier")
    body = BodyBuilder(names)
    start, step, count, inv_freq, multiplier = body.inputs.values()
    outputs = rotary_run(body, (start, step, count), inv_freq, multiplier)
    kinds = (ir.DataType.INT64,) * 3 + (ir.DataType.FLOAT,) * 2
    for value, kind, rank in zip(body.inputs.values(), kinds, (0, 0, 0, 2, 1), strict=True):
        value.type, value.shape = ir.TensorType(kind), ir.Shape([None] * rank)
    for value in outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    graph = body.function("run", "test", outputs, {}).graph
    model = ir.Model(graph, ir_version=10)
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    table = (10000.0 ** (-np.arange(8) / 8)).astype(np.float32)
    frequencies, factors = np.stack([table, table / 3]), np.array([1.0, 1.25], np.float32)
    for first, stride, length in ((0, 1, 1), (3, 1, 64), (5, 7, 200), (1 << 33, 64, 65)):
        given = (np.int64(first), np.int64(stride), np.int64(length), frequencies, factors)
        cos, sin = session.run(None, dict(zip(names, map(np.asarray, given), strict=True)))
        positions = first + stride * np.arange(length)
        angle = positions[:, None] * frequencies.astype(np.float64)[:, None]
        factor = factors[:, None, None]
        np.testing.assert_allclose(cos, np.cos(angle) * factor, rtol=0, atol=5e-7)
        np.testing.assert_allclose(sin, np.sin(angle) * factor, rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("variant", "wrong", "reason"),
    [
        (FarVariant, {"optional": ("multiplier", "inv_freq")}, "ordered subset"),
        (FarVariant, {"optional": ("sink_q",)}, "ordered subset"),
        (FarVariant, {"optional": ("inv_freq",)}, "come together"),
        (LandmarkVariant, {"optional": ("inv_freq",)}, "come together"),
        (LandmarkVariant, {"optional": ("head_sink",), "landmark": True}, "no learned sink"),
    ],
)
def test_a_variant_without_what_it_needs_is_refused(variant, wrong, reason):
    with pytest.raises(ValueError, match=reason):
        variant(**wrong)


def test_bodies_have_the_operators_names_and_inputs():
    for name, body in FAR_BODIES.items():
        spec = OPERATORS[name]
        function = body.make(body.variant(optional=spec.optional[:2]))
        assert function.name == name
        assert [value.name for value in function.inputs] == [*spec.inputs, *spec.optional[:2]]
        assert set(function.attributes) == set(spec.attributes)
        assert len(function.outputs) == len(spec.outputs)
