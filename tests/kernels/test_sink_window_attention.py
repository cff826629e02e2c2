"""SinkWindowAttention's kernels, executed by the host; oracle: ops.reference in float64.

Slots no token was written to, and rows past `new`, hold NaN, so reading one shows in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ctx_export.ops.reference import AttentionCase, sink_window_attention
from ctx_export.ops.spec import Rotation
from tests.kernels.attention_cases import Shape, make_case, prepare, run_case
from tests.kernels.kernel_library import DTYPES, KernelLibrary
from tests.kernels.torch_attention import attention

FLOAT32_TOLERANCE = 2e-5  # float32 arithmetic on values of size 1
# Keys of size up to 5, turned and then rounded to their type once.
TURNED_TOLERANCE = {"float32": 1e-6, "float16": 5 * 2.0**-11, "bfloat16": 5 * 2.0**-8}
UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def allowed_error(case: AttentionCase, dtype: str, expected: Any, caches: Sequence[Any]) -> float:
    """Flash-attention's gate for low precision: twice PyTorch's own error in it.

    The floor is one rounding of the output, for the cases in which PyTorch happens to be exact.
    """
    if dtype == "float32":
        return FLOAT32_TOLERANCE
    theirs = attention(case, *caches, dtype)
    attends = ~np.isnan(expected)
    their_error = np.abs(theirs - expected)[attends].max(initial=0.0)
    return float(
        2 * their_error + UNIT_ROUNDOFF[dtype] * np.abs(expected[attends]).max(initial=0.0)
    )


def assert_matches_reference(
    library: KernelLibrary, shape: Shape, *, alias: bool = False, workspace: bool = False
) -> None:
    case = make_case(shape)
    expected, *caches = sink_window_attention(case)
    y, *presents = run_case(library, case, shape.dtype, alias=alias, workspace=workspace)
    element = DTYPES[shape.dtype][1]
    for present, cache in zip(presents, caches, strict=True):
        assert present.dtype == element
        stored = present.astype(np.float64)
        if shape.rotation == Rotation.ON_WRITE:
            np.testing.assert_allclose(stored, cache, rtol=0, atol=TURNED_TOLERANCE[shape.dtype])
        else:
            np.testing.assert_array_equal(stored, cache)
    got = y.astype(np.float64)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    error = np.nanmax(np.abs(got - expected), initial=0.0)
    assert error <= allowed_error(case, shape.dtype, expected, caches)
    for b, new in enumerate(shape.new):
        assert (got[b, :, new:] == 0).all()


def ring(sinks: int, window: int, chunk: int) -> int:
    return sinks + window + chunk - 1


@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 32, 64, 72, 80, 96, 112, 128, 136, 192, 256])
def test_every_head_dim_and_dtype(library, dim, dtype, alias):
    shape = Shape(seen=(0, 30), new=(11, 3), rows=11, capacity=43, dim=dim, groups=2, dtype=dtype)
    assert_matches_reference(library, shape, alias=alias)


@pytest.mark.parametrize("rows", [1, 2, 7, 19, 31, 32, 33, 63, 64, 65, 99, 127, 128, 129])
@pytest.mark.parametrize("window", [0, 1, 5, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prefill_lengths_around_the_tiles(library, rows, window, dtype):
    shape = Shape(
        dtype=dtype,
        seen=(0, 3),
        new=(rows, rows),
        rows=rows,
        capacity=rows + 3,
        dim=32,
        window=window,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("seen", [0, 1, 14, 15, 16, 17, 31, 32, 33, 62, 63, 64, 99, 200])
@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_lengths_around_the_tiles(library, seen, sinks, dtype):
    window = 17 if sinks else 0
    shape = Shape(
        dtype=dtype,
        seen=(seen,),
        new=(1,),
        rows=1,
        capacity=201,
        groups=4,
        kv_heads=2,
        sinks=sinks,
        window=window,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kv_heads", "groups"), [(4, 1), (2, 2), (1, 5), (2, 8), (1, 9), (1, 48)])
@pytest.mark.parametrize("rows", [1, 6])
def test_grouped_and_multi_query_heads(library, kv_heads, groups, rows, dtype):
    shape = Shape(
        seen=(9, 0),
        new=(rows, max(1, rows - 2)),
        rows=rows,
        capacity=20,
        kv_heads=kv_heads,
        groups=groups,
        head_sink=True,
        dtype=dtype,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged_batch_with_an_idle_sequence(library, dtype):
    shape = Shape(
        dtype=dtype, seen=(0, 7, 40, 12), new=(5, 0, 9, 1), rows=9, capacity=50, groups=2
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize(("sinks", "window"), [(0, 1), (0, 7), (1, 1), (4, 8), (33, 5), (5, 40)])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks_and_window_in_both_layouts(library, sinks, window, bounded, dtype):
    capacity = ring(sinks, window, 6) if bounded else 120
    shape = Shape(
        dtype=dtype,
        seen=(0, 3, 33, 100),
        new=(6, 5, 6, 2),
        rows=6,
        capacity=capacity,
        dim=32,
        sinks=sinks,
        window=window,
        bounded=bounded,
    )
    assert_matches_reference(library, shape)


def wrap_positions(sinks: int, capacity: int, rows: int) -> list[int]:
    """Lengths at which a call ends before, at and after a wrap, and several rings later."""
    size = capacity - sinks
    return [sinks + laps * size + step for laps in (1, 2, 5) for step in (-rows, -1, 0, 1)]


@pytest.mark.parametrize("chunk", [1, 3, 16])
@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bounded_cache_around_every_wrap(library, chunk, alias, dtype):
    sinks, window = 3, 20
    capacity = ring(sinks, window, chunk)
    seen = wrap_positions(sinks, capacity, chunk)
    shape = Shape(
        dtype=dtype,
        seen=tuple(seen),
        new=(chunk,) * len(seen),
        rows=chunk,
        capacity=capacity,
        dim=32,
        sinks=sinks,
        window=window,
        bounded=True,
        sink_q=True,
    )
    assert_matches_reference(library, shape, alias=alias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ring_of_one_slot_and_ring_shorter_than_a_tile(library, dtype):
    for capacity, window in ((5, 1), (9, 5)):
        shape = Shape(
            dtype=dtype,
            seen=(0, 4, 77),
            new=(1, 1, 1),
            rows=1,
            capacity=capacity,
            sinks=4,
            window=window,
            bounded=True,
        )
        assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_heads_than_take_turns_with_their_tiles(library, dtype):
    """Caches of 16 MB are worked on at a time: here two or three sections, the last smaller."""
    shape = Shape(
        seen=(0,), new=(130,), rows=130, capacity=6144, dim=128, kv_heads=7, groups=2, dtype=dtype
    )
    assert_matches_reference(library, shape, alias=True)


SPLIT_DIMS = {"float32": (64, 128, 256), "float16": (64, 80, 256), "bfloat16": (96, 128, 256)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 5, 17])
@pytest.mark.parametrize("sinks", [0, 4])
def test_keys_split_over_blocks(library, dtype, rows, sinks):
    """Lengths that leave splits without keys, with part of a tile, and with some each."""
    for dim in SPLIT_DIMS[dtype]:
        shape = Shape(
            seen=(0, 70, 900, 1200 - rows),
            new=(rows, max(1, rows - 1), 0, rows),
            rows=rows,
            capacity=1200,
            dim=dim,
            groups=4,
            sinks=sinks,
            window=800 if sinks else 0,
            sink_q=sinks > 0,
            head_sink=True,
            dtype=dtype,
        )
        assert library.workspace_bytes(prepare(make_case(shape), dtype, alias=True).params) > 0
        assert_matches_reference(library, shape, alias=True, workspace=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_split_keys_in_a_wrapped_ring_with_rotation_and_cap(library, dtype):
    shape = Shape(
        seen=(1900,),
        new=(2,),
        rows=2,
        capacity=ring(4, 700, 2),
        groups=3,
        sinks=4,
        window=700,
        bounded=True,
        sink_q=True,
        rotary_dim=64,
        softcap=15.0,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, workspace=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_without_a_slot_is_nan_when_keys_are_split(library, dtype):
    shape = Shape(seen=(598, 20), new=(4, 1), rows=4, capacity=600, groups=2, dtype=dtype)
    assert_matches_reference(library, shape, workspace=True)


def test_a_workspace_serves_every_smaller_call(library):
    def asked(**changes: Any) -> int:
        call = prepare(
            make_case(Shape(seen=(0,), new=(1,), rows=1, capacity=8)), "float16", alias=True
        )
        sizes = {"batch": 8, "queryHeads": 32, "kvHeads": 8, "rows": 64, "capacity": 8192}
        for name, value in {**sizes, "headDim": 128, **changes}.items():
            setattr(call.params, name, value)
        return library.workspace_bytes(call.params)

    largest = asked()
    assert 0 < largest <= 20_000_000
    for smaller in ({"batch": 1}, {"rows": 1}, {"batch": 1, "rows": 1}, {"capacity": 2048}):
        assert asked(**smaller) <= largest
    assert asked(capacity=100) == 0  # too short to split
    assert asked(batch=-1) == 0


def test_bounded_cache_far_along_keeps_its_slots(library):
    """Positions near 2^33: the reference's walk over all tokens is replaced by a shifted cache."""
    sinks, window, rows = 2, 9, 3
    capacity = ring(sinks, window, rows)
    near = sinks + 4 * (capacity - sinks) + 5
    far = near + (2**33 // (capacity - sinks)) * (capacity - sinks)
    shape = Shape(
        seen=(near,), new=(3,), rows=3, capacity=capacity, sinks=sinks, window=window, bounded=True
    )
    case = make_case(shape)
    expected = run_case(library, case, "float32")
    got = run_case(library, replace(case, seen=np.array([far])), "float32")
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("softcap", [0.5, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softcap(library, softcap, dtype):
    shape = Shape(
        dtype=dtype,
        seen=(5,),
        new=(8,),
        rows=8,
        capacity=13,
        groups=2,
        softcap=softcap,
        head_sink=True,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("seen", [0, 2, 50])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sink_query_serves_the_sinks_only(library, bounded, seen, dtype):
    shape = Shape(
        dtype=dtype,
        seen=(seen,),
        new=(5,),
        rows=5,
        capacity=ring(4, 8, 5) if bounded else 64,
        groups=3,
        sinks=4,
        window=8,
        bounded=bounded,
        sink_q=True,
        head_sink=True,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "rotary_dim"), [(64, 64), (80, 32), (32, 2), (256, 256)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unrotated_keys_are_rotated_when_read(library, interleaved, dim, rotary_dim, dtype):
    shape = Shape(
        seen=(0, 37),
        new=(4, 5),
        rows=5,
        capacity=44,
        dim=dim,
        rotary_dim=rotary_dim,
        interleaved=interleaved,
        frequency_batch=2,
        dtype=dtype,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unrotated_keys_in_a_wrapped_ring(library, dtype):
    shape = Shape(
        dtype=dtype,
        seen=(61,),
        new=(4,),
        rows=4,
        capacity=ring(3, 12, 4),
        sinks=3,
        window=12,
        bounded=True,
        sink_q=True,
        rotary_dim=48,
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotation", [Rotation.ON_WRITE, Rotation.QUERY_AND_KEYS_ON_READ])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "rotary_dim"), [(64, 64), (80, 32), (32, 6), (256, 256)])
def test_queries_and_keys_that_the_call_rotates(
    library, dtype, rotation, interleaved, dim, rotary_dim
):
    for rows in (1, 11):
        shape = Shape(
            seen=(0, 37),
            new=(1, rows),
            rows=rows,
            capacity=48,
            dim=dim,
            groups=2,
            rotary_dim=rotary_dim,
            rotation=rotation,
            interleaved=interleaved,
            frequency_batch=2,
            dtype=dtype,
        )
        assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotation", [Rotation.ON_WRITE, Rotation.QUERY_AND_KEYS_ON_READ])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("seen", [0, 2, 9, 61])
def test_second_rotation_for_the_sinks(library, dtype, rotation, rows, seen):
    shape = Shape(
        seen=(seen, 3),
        new=(rows, 1),
        rows=rows,
        capacity=ring(4, 12, rows),
        groups=3,
        sinks=4,
        window=12,
        bounded=True,
        rotary_dim=48,
        rotation=rotation,
        sink_position=15,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, alias=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_at_once(library, dtype):
    shape = Shape(
        seen=(0, 13, 71),
        new=(7, 0, 4),
        rows=7,
        capacity=ring(5, 11, 7),
        dim=80,
        kv_heads=2,
        groups=3,
        sinks=5,
        window=11,
        bounded=True,
        softcap=20.0,
        sink_q=True,
        head_sink=True,
        rotary_dim=64,
        interleaved=True,
        frequency_batch=3,
        dtype=dtype,
    )
    for alias in (False, True):
        assert_matches_reference(library, shape, alias=alias)


@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_past_the_last_slot_is_nan_and_unwritten(library, alias, dtype):
    shape = Shape(dtype=dtype, seen=(6, 8, 10), new=(4, 1, 3), rows=4, capacity=8, groups=2)
    assert_matches_reference(library, shape, alias=alias)


def test_cache_without_slots_gives_nan(library):
    case = make_case(Shape(seen=(0,), new=(2,), rows=3, capacity=0))
    y, *_ = run_case(library, case, "float32")
    assert np.isnan(y[:, :, :2]).all() and (y[:, :, 2:] == 0).all()


def test_counts_out_of_range_write_nothing_outside(library):
    """`new` above S is S; a negative `new` is 0; a negative `seen` has no slots."""
    case = make_case(Shape(seen=(2, 2, 2), new=(3, 3, 3), rows=3, capacity=8))
    odd = replace(case, seen=np.array([2, 2, -5]), new=np.array([99, -4, 3]))
    usual, *_ = run_case(library, case, "float32")
    y, *_ = run_case(library, odd, "float32")
    np.testing.assert_array_equal(y[0], usual[0])
    assert (y[1] == 0).all()
    assert np.isnan(y[2]).all()


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("seen", [-(2**63), 2**62 + 1, 2**63 - 1])
def test_seen_that_is_no_count_of_tokens_has_no_slots(library, seen, bounded):
    case = make_case(Shape(seen=(0, 0), new=(3, 2), rows=3, capacity=8, bounded=bounded))
    y, key, value = run_case(library, replace(case, seen=np.array([seen, 0])), "float32")
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], run_case(library, case, "float32")[0][1])
    np.testing.assert_array_equal(key[0], case.past_key[0].astype(np.float32))
    np.testing.assert_array_equal(value[0], case.past_value[0].astype(np.float32))


def test_bounded_positions_just_below_the_largest_seen(library):
    case = make_case(Shape(seen=(0,), new=(3,), rows=3, capacity=8, bounded=True, window=1))
    y, *_ = run_case(library, replace(case, seen=np.array([2**62])), "float32")
    np.testing.assert_array_equal(y, case.v.astype(np.float32))


def test_values_at_the_end_of_float16_stay_finite(library):
    largest = float(np.finfo(np.float16).max)
    case = make_case(Shape(seen=(40,), new=(3,), rows=3, capacity=64, groups=3, dtype="float16"))
    written = np.isfinite(case.past_value)
    case = replace(
        case,
        v=np.full_like(case.v, largest),
        past_value=np.where(written, largest, case.past_value),
    )
    y, *_ = run_case(library, case, "float16")
    assert (y == largest).all()


def test_chunk_longer_than_the_ring_keeps_the_newest(library):
    """Past max_chunk the contract is broken; the newest token still owns each slot, as always."""
    shape = Shape(
        seen=(0,),
        new=(14,),
        rows=14,
        capacity=ring(2, 4, 3),
        sinks=2,
        window=4,
        bounded=True,
        dim=32,
    )
    case = make_case(shape)
    _, key, value = run_case(library, case, "float32")
    size = shape.capacity - shape.sinks
    for token in (0, 1, *range(14 - size, 14)):
        slot = token if token < 2 else 2 + (token - 2) % size
        np.testing.assert_array_equal(key[0, :, slot], case.k[0, :, token].astype(np.float32))
        np.testing.assert_array_equal(value[0, :, slot], case.v[0, :, token].astype(np.float32))


def test_head_sink_of_minus_infinity_adds_nothing(library):
    case = make_case(Shape(seen=(3,), new=(4,), rows=4, capacity=8, window=2, groups=2))
    plain, *_ = run_case(library, case, "float32")
    without, *_ = run_case(library, replace(case, head_sink=np.full(2, -np.inf)), "float32")
    np.testing.assert_array_equal(without, plain)


def test_large_logits_stay_finite(library):
    case = make_case(Shape(seen=(40,), new=(3,), rows=3, capacity=64))
    case = replace(case, scale=300.0)
    expected, *_ = sink_window_attention(case)
    y, *_ = run_case(library, case, "float32")
    # Logits of 1e4 carry an absolute error of 1e-3 in float32.
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-2)


def test_splits_of_a_sequence_agree(library):
    """One call of 24 tokens against calls of 1, 7, 5 and 11, in a bounded cache."""
    base = Shape(
        seen=(0,),
        new=(24,),
        rows=24,
        capacity=ring(3, 6, 24),
        sinks=3,
        window=6,
        bounded=True,
        groups=2,
    )
    whole = make_case(base)
    expected, *_ = run_case(library, whole, "float32")
    key, value, begin = whole.past_key, whole.past_value, 0
    for count in (1, 7, 5, 11):
        part = slice(begin, begin + count)
        case = replace(
            whole,
            q=whole.q[:, :, part],
            k=whole.k[:, :, part],
            v=whole.v[:, :, part],
            past_key=key,
            past_value=value,
            seen=np.array([begin]),
            new=np.array([count]),
        )
        y, key, value = run_case(library, case, "float32")
        np.testing.assert_allclose(y, expected[:, :, part], rtol=0, atol=1e-6)
        begin += count
