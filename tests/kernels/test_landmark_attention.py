"""LandmarkAttention's kernels, executed by the host; oracle: ops.reference_far in float64.

Slots of no token and no mean, values of means, and rows past `new` hold NaN, so reading one shows.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ctx_export.ops.reference import AttentionCase, sink_window_attention
from ctx_export.ops.reference_far import LandmarkCase, landmark_attention
from ctx_export.ops.spec import Layout, Rotation
from tests.kernels.far_cases import laid_out
from tests.kernels.kernel_library import DTYPES, KernelError, KernelLibrary
from tests.kernels.landmark_cases import (
    Shape,
    filled_slots,
    make_case,
    prepare,
    run_case,
    torch_landmark,
)

FLOAT32_TOLERANCE = 2e-5  # float32 arithmetic on values of size 1
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def allowed_error(case: LandmarkCase, dtype: str, expected: Any) -> float:
    """Flash-attention's gate for low precision: twice PyTorch's own error in it, and one rounding
    of the output for the cases in which PyTorch happens to be exact."""
    if dtype == "float32":
        return FLOAT32_TOLERANCE
    there = ~np.isnan(expected)
    their_error = np.abs(torch_landmark(case, dtype) - expected)[there].max(initial=0.0)
    largest = np.abs(expected[there]).max(initial=0.0)
    return float(2 * their_error + UNIT_ROUNDOFF[dtype] * largest)


def assert_matches_reference(
    library: KernelLibrary, shape: Shape, *, alias: bool = False, layout: int = 0
) -> None:
    case = make_case(shape)
    expected, *caches = landmark_attention(case)
    given = laid_out(case, Layout(layout)) if layout else case
    y, *presents = run_case(library, given, shape.dtype, alias=alias)
    tokens_only = [
        filled_slots(shape, s + n)[0] for s, n in zip(shape.seen, shape.new, strict=True)
    ]
    for present, cache in zip(presents, caches, strict=True):
        assert_same_cache(present, cache, shape, tokens_only)
    got = y.astype(np.float64)
    if layout:
        got = got.reshape(*got.shape[:2], -1, shape.dim).swapaxes(1, 2)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    error = np.nanmax(np.abs(got - expected), initial=0.0)
    assert error <= allowed_error(case, shape.dtype, expected)
    for b, new in enumerate(shape.new):
        assert (got[b, :, new:] == 0).all()


def assert_same_cache(present: Any, cache: Any, shape: Shape, tokens: list[set[int]]) -> None:
    """Tokens' slots to the last bit, means within one rounding of their float32 sums."""
    assert present.dtype == DTYPES[shape.dtype][1]
    stored = present.astype(np.float64)
    for b, of_tokens in enumerate(tokens):
        slots = [slot for slot in sorted(of_tokens) if slot < cache.shape[2]]
        np.testing.assert_array_equal(stored[b, :, slots], cache[b, :, slots])
    np.testing.assert_allclose(stored, cache, rtol=2 * UNIT_ROUNDOFF[shape.dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 7, 16, 64])
@pytest.mark.parametrize(("topk", "window", "sinks"), [(1, 1, 0), (3, 12, 4), (200, 5, 0)])
def test_prefill_in_blocks_of_every_size(library, block, topk, window, sinks, dtype):
    shape = Shape(
        seen=(0, 40),
        new=(99, 19),
        rows=99,
        block=block,
        topk=topk,
        window=window,
        sinks=sinks,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, alias=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 7, 16, 64])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("landmark", [False, True])
def test_decode_at_every_place_within_a_block(library, block, shared, landmark, dtype):
    seen = (0, 3, 4, 10, 17, 24, 31, 66, 67, 68, 87, 88, 131, 200)
    shape = Shape(
        seen=seen,
        new=(1,) * len(seen),
        rows=1,
        block=max(block, 2) if landmark else block,
        topk=2,
        kv_heads=2,
        groups=3,
        sinks=4,
        window=20,
        shared=shared,
        landmark=landmark,
        dtype=dtype,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("landmark", [False, True])
@pytest.mark.parametrize(("kv_heads", "groups"), [(3, 1), (2, 4), (1, 5), (1, 17)])
@pytest.mark.parametrize("shared", [False, True])
def test_ragged_batch_with_an_idle_sequence(library, kv_heads, groups, shared, landmark, dtype):
    shape = Shape(
        seen=(0, 88, 131, 5),
        new=(7, 1, 9, 0),
        rows=9,
        block=7,
        topk=3,
        kv_heads=kv_heads,
        groups=groups,
        sinks=2,
        window=11,
        shared=shared,
        landmark=landmark,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, alias=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [2, 7, 16, 33])
@pytest.mark.parametrize("window", [1, 40])
def test_grouped_softmax(library, block, window, dtype):
    """Windows shorter and longer than a block; queries that are landmarks themselves."""
    shape = Shape(
        seen=(0, 131),
        new=(41, 37),
        rows=41,
        block=block,
        topk=3,
        groups=2,
        window=window,
        landmark=True,
        dtype=dtype,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 64, 72, 80, 96, 128, 136, 256])
def test_every_head_dim(library, dim, dtype):
    for landmark in (False, True):
        shape = Shape(
            seen=(60,),
            new=(6,),
            rows=6,
            block=16,
            topk=1,
            dim=dim,
            groups=2,
            sinks=3,
            landmark=landmark,
            dtype=dtype,
        )
        assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [0, 2, 24, 64])
def test_rotation_of_some_dims_and_tables_of_each_sequence(
    library, rotary_dim, interleaved, dtype
):
    shape = Shape(
        seen=(70, 90, 101),
        new=(4, 4, 4),
        rows=4,
        block=16,
        topk=2,
        dim=64,
        sinks=4,
        rotary_dim=rotary_dim,
        interleaved=interleaved,
        frequency_batch=3,
        dtype=dtype,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.3, -0.3])
def test_softcap_head_sinks_and_a_negative_scale(library, scale, dtype):
    """Blocks are chosen without the cap; it, and a sink, change what the chosen ones weigh."""
    for softcap, head_sink, landmark in (
        (2.0, True, False),
        (2.0, False, True),
        (0.0, True, False),
    ):
        shape = Shape(
            seen=(85,),
            new=(5,),
            rows=5,
            block=7,
            topk=2,
            groups=3,
            sinks=1,
            window=4,
            softcap=softcap,
            head_sink=head_sink,
            landmark=landmark,
            scale=scale,
            dtype=dtype,
        )
        assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [Layout.TOKEN_MAJOR, Layout.PACKED])
def test_layouts(library, layout, dtype):
    shape = Shape(
        seen=(0, 44, 30),
        new=(19, 3, 17),
        rows=19,
        block=5,
        topk=2,
        kv_heads=2,
        groups=3,
        sinks=2,
        window=6,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, layout=layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("landmark", [False, True])
def test_keys_split_over_blocks(library, landmark, dtype):
    """Long enough that splits have tiles of the sinks, of far and near blocks and of the rest."""
    shape = Shape(
        seen=(0, 200, 2100),
        new=(2, 1, 2),
        rows=2,
        block=64,
        topk=14,
        groups=4,
        sinks=4,
        window=130,
        landmark=landmark,
        head_sink=not landmark,
        dtype=dtype,
    )
    case = make_case(shape)
    one_split = replace(case, topk=1, window=1)
    few, many = (
        library.workspace_bytes(prepare(one, dtype, alias=True).params)
        for one in (one_split, case)
    )
    assert many - few > 2 * 4 * 2 * shape.dim * 4  # the results of more than two splits
    assert_matches_reference(library, shape, alias=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("landmark", [False, True])
def test_more_blocks_than_a_warp_scores_or_a_list_takes_at_a_time(library, landmark, dtype):
    shape = Shape(
        seen=(1250,),
        new=(3,),
        rows=3,
        block=2,
        topk=90,
        groups=2,
        sinks=1,
        landmark=landmark,
        dtype=dtype,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sections_of_a_small_workspace_give_the_same(library, dtype):
    for landmark in (False, True):
        shape = Shape(
            seen=(0, 70),
            new=(41, 37),
            rows=41,
            block=7,
            topk=3,
            kv_heads=2,
            groups=3,
            sinks=2,
            window=9,
            landmark=landmark,
            dtype=dtype,
        )
        case = make_case(shape)
        expected = landmark_attention(case)[0]
        allowed = allowed_error(case, dtype, expected)
        caches = run_case(library, case, dtype)[1:]
        for tokens in (1, 7, 16):
            y, *presents = run_case(library, case, dtype, section_tokens=tokens)
            assert np.abs(y.astype(np.float64) - expected).max() <= allowed
            for one, other in zip(presents, caches, strict=True):
                np.testing.assert_array_equal(one.astype(np.float64), other.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("landmark", [False, True])
def test_any_chunking_gives_the_same(library, landmark, dtype):
    shape = Shape(
        seen=(0,),
        new=(99,),
        rows=99,
        block=7,
        topk=2,
        groups=2,
        sinks=3,
        window=5,
        landmark=landmark,
        dtype=dtype,
    )
    case = make_case(shape)
    whole = run_case(library, case, dtype)
    key, value, rows = case.past_key, case.past_value, []
    for begin, end in pairwise((0, 1, 2, 9, 10, 11, 28, 60, 61, 99)):
        part = {name: getattr(case, name)[:, :, begin:end] for name in ("q", "k", "v")}
        chunk = replace(
            case,
            **part,
            past_key=key,
            past_value=value,
            seen=np.array([begin]),
            new=np.array([end - begin]),
        )
        y, key, value = run_case(library, chunk, dtype)
        rows.append(y.astype(np.float64))
    for one, other in zip((key, value), whole[1:], strict=True):
        np.testing.assert_array_equal(one.astype(np.float64), other.astype(np.float64))
    error = np.abs(np.concatenate(rows, axis=2) - whole[0].astype(np.float64)).max()
    assert error <= allowed_error(case, dtype, landmark_attention(case)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_reading_every_block_is_full_attention(library, dtype):
    """Oracle: the reference of SinkWindowAttention over a full cache."""
    shape = Shape(
        seen=(0, 0),
        new=(50, 33),
        rows=50,
        block=7,
        topk=7,
        groups=2,
        sinks=2,
        window=3,
        dtype=dtype,
    )
    case = make_case(shape)
    shared = {
        name: getattr(case, name)
        for name in ("q", "k", "v", "seen", "new", "scale", "inv_freq", "multiplier", "rotary_dim")
    }
    empty = np.full((2, 1, 50, shape.dim), np.nan)
    expected, *_ = sink_window_attention(
        AttentionCase(
            **shared,
            past_key=empty,
            past_value=empty,
            rotation=Rotation.QUERY_AND_KEYS_ON_READ,
        )
    )
    y, *_ = run_case(library, case, dtype)
    error = np.abs(y.astype(np.float64) - expected).max()
    assert error <= allowed_error(case, dtype, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lower_block(library, dtype):
    """A query of zeros scores 0 everywhere, half of them -0; a third of the keys are the same."""
    shape = Shape(
        seen=(1500, 90), new=(2, 2), rows=2, block=3, topk=40, groups=2, sinks=1, dtype=dtype
    )
    case = make_case(shape)
    case.q[0] = 0
    case.q[0, 1] = -0.0
    means = sorted(filled_slots(shape, 90)[1])
    case.past_key[1, :, means[::3]] = case.past_key[1, :, means[:1]]
    ties = replace(case, topk=7, rotary_dim=0, inv_freq=None, multiplier=None)
    for one in (replace(case, topk=40), ties):
        expected, *_ = landmark_attention(one)
        y, *_ = run_case(library, one, dtype)
        error = np.abs(y.astype(np.float64) - expected).max()
        assert error <= allowed_error(one, dtype, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("landmark", [False, True])
def test_tokens_of_other_blocks_are_not_read(library, landmark, dtype):
    """Of a block that no head chooses only its representative is read."""
    shape = Shape(
        seen=(190,),
        new=(1,),
        rows=1,
        block=10,
        topk=2,
        groups=2,
        sinks=2,
        landmark=landmark,
        dtype=dtype,
    )
    case = make_case(shape)
    expected = run_case(library, case, dtype)[0]
    stride = shape.block + (0 if landmark else 1)
    unread = 0
    for block in range(188 // shape.block):
        slots = shape.sinks + block * stride + np.arange(shape.block - 1)
        key, value = case.past_key.copy(), case.past_value.copy()
        key[:, :, slots] = value[:, :, slots] = np.nan
        got = run_case(library, replace(case, past_key=key, past_value=value), dtype)[0]
        unread += int(np.array_equal(got, expected))
    assert unread >= 188 // shape.block - 2 * shape.topk


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("landmark", "capacity"), [(False, 97), (False, 95), (True, 91)])
def test_a_row_without_a_slot_is_nan(library, landmark, capacity, dtype):
    shape = Shape(
        seen=(88, 20),
        new=(9, 1),
        rows=9,
        block=15,
        topk=1,
        capacity=capacity,
        sinks=1,
        landmark=landmark,
        dtype=dtype,
    )
    assert_matches_reference(library, shape)


def sizes(**changes: int) -> Any:
    shape = Shape(seen=(0,), new=(1,), rows=1, block=64, topk=16)
    call = prepare(make_case(shape), "float16", alias=True)
    large = {"batch": 4, "queryHeads": 32, "kvHeads": 8, "rows": 512, "capacity": 32768}
    for name, value in {**large, "headDim": 128, **changes}.items():
        owner = call.params if hasattr(call.params, name) else call.params.call
        setattr(owner, name, value)
    return call.params


def test_a_workspace_serves_every_smaller_call(library):
    for landmark in (0, 1):
        largest = library.workspace_bytes(sizes(landmark=landmark))
        assert 0 < largest < 160_000_000
        for name, value in {"batch": 1, "rows": 1, "capacity": 8000, "queryHeads": 8}.items():
            smaller = library.workspace_bytes(sizes(landmark=landmark, **{name: value}))
            assert 0 < smaller <= largest
    assert library.workspace_bytes(sizes(batch=-1)) == 0
    assert library.workspace_bytes(sizes(block=0)) == 0


WRONG = {
    "window is 0": {"window": 0},
    "block 0": {"block": 0},
    "topk 0": {"topk": 0},
    "a block of 2 or more": {"landmark": 1, "block": 1},
    "shared is 2": {"shared": 2},
    "landmark 2": {"landmark": 2},
    "neither may be negative": {"sinks": -1},
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_makes_no_sense_is_refused(library, fault):
    shape = Shape(seen=(0,), new=(3,), rows=3, block=2, topk=1)
    call = prepare(make_case(shape), "float32", alias=False)
    for name, value in WRONG[fault].items():
        setattr(call.params, name, value)
    with pytest.raises(KernelError, match=fault):
        library.run("ctxLandmarkAttention", call, (), workspace=True)


def test_a_learned_sink_does_not_go_with_landmarks(library):
    shape = Shape(seen=(0,), new=(3,), rows=3, block=2, topk=1, head_sink=True)
    call = prepare(make_case(shape), "float32", alias=False)
    call.params.landmark = 1
    with pytest.raises(KernelError, match="the grouped softmax has no learned sink"):
        library.run("ctxLandmarkAttention", call, (), workspace=True)


def test_a_call_needs_its_workspace(library):
    shape = Shape(seen=(0,), new=(3,), rows=3, block=2, topk=1)
    call = prepare(make_case(shape), "float32", alias=False)
    with pytest.raises(KernelError, match="give what ctxLandmarkAttentionWorkspace says"):
        library.run("ctxLandmarkAttention", call, ())
