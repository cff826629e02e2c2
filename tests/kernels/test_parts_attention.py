"""The kernels of SelfExtendAttention, DualChunkAttention and MemoryAttention, executed by the
host; oracle: ops.reference_far in float64.

Slots of no token and no mean, and rows past `new`, hold NaN, so reading one shows in the result.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ctx_export.ops.reference_far import FarCase
from ctx_export.ops.spec import Layout
from tests.kernels.far_cases import laid_out
from tests.kernels.kernel_library import DTYPES, KernelError, KernelLibrary
from tests.kernels.parts_cases import (
    Shape,
    filled_slots,
    make_case,
    prepare,
    run_case,
    torch_attention,
)
from tests.support.far_calls import FarRule, dual_chunk, feed, make_text, memory, self_extend

FLOAT32_TOLERANCE = 2e-5  # float32 arithmetic on values of size 1
UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
RULES = {
    "self-extend": self_extend(4, 24),
    "dual-chunk": dual_chunk(24, 37),
    "memory": memory(3, 20, 5, 4, rows=16),
}


def allowed_error(rule: FarRule, case: FarCase, dtype: str, expected: Any) -> float:
    """Flash-attention's gate for low precision: twice PyTorch's own error in it, and one rounding
    of the output for the cases in which PyTorch happens to be exact."""
    if dtype == "float32":
        return FLOAT32_TOLERANCE
    there = ~np.isnan(expected)
    theirs = torch_attention(rule, case, dtype)
    their_error = np.abs(theirs - expected)[there].max(initial=0.0)
    largest = np.abs(expected[there]).max(initial=0.0)
    return float(2 * their_error + UNIT_ROUNDOFF[dtype] * largest)


def assert_matches_reference(
    library: KernelLibrary,
    shape: Shape,
    *,
    alias: bool = False,
    workspace: bool = False,
    layout: Layout = Layout.HEAD_MAJOR,
) -> None:
    case = make_case(shape)
    expected, *caches = shape.rule.reference(case)
    given = laid_out(case, layout) if layout else case
    y, *presents = run_case(
        library, shape.rule, given, shape.dtype, alias=alias, workspace=workspace
    )
    for present, cache in zip(presents, caches, strict=True):
        assert_same_cache(present, cache, shape)
    got = y.astype(np.float64)
    if layout:
        got = got.reshape(*got.shape[:2], -1, shape.dim).swapaxes(1, 2)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    error = np.nanmax(np.abs(got - expected), initial=0.0)
    assert error <= allowed_error(shape.rule, case, shape.dtype, expected)
    for b, new in enumerate(shape.new):
        assert (got[b, :, new:] == 0).all()


def assert_same_cache(present: Any, cache: Any, shape: Shape) -> None:
    """To the last bit; means within two roundings of their float32 sums."""
    assert present.dtype == DTYPES[shape.dtype][1]
    stored = present.astype(np.float64)
    means = slice(0, 0)
    if shape.rule.name == "memory":
        first = shape.rule.near["sinks"]
        means = slice(first, first + shape.rule.numbers["memory_slots"])
        rounding = {"rtol": 2 * UNIT_ROUNDOFF[shape.dtype], "atol": 1e-6}
        np.testing.assert_allclose(stored[:, :, means], cache[:, :, means], **rounding)
    others = np.delete(np.arange(cache.shape[2]), means)
    np.testing.assert_array_equal(stored[:, :, others], cache[:, :, others])


def at_every_size(kind: str, size: int) -> FarRule:
    """A rule whose G, chunk or block is `size`."""
    return {
        "self-extend": self_extend(size, 2 * size),
        "dual-chunk": dual_chunk(size, size + size // 2 + 1),
        "memory": memory(2, 9, size, 3, rows=99),
    }[kind]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 16, 64])
@pytest.mark.parametrize("kind", RULES)
def test_prefill_with_groups_chunks_and_blocks_of_every_size(library, kind, size, dtype):
    shape = Shape(
        rule=at_every_size(kind, size), seen=(0, 45, 160), new=(99, 19, 0), rows=99, dtype=dtype
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 16, 64])
@pytest.mark.parametrize("kind", RULES)
def test_decode_around_every_border(library, kind, size, dtype):
    rule = {"memory": memory(2, 9, size, 3, rows=1)}.get(kind) or at_every_size(kind, size)
    borders = {
        "self-extend": [2 * size, 3 * size],
        "dual-chunk": [size, 2 * size, 3 * size],
        "memory": [2, 11 + size, 11 + 3 * size, 11 + 5 * size],
    }[kind]
    seen = sorted({max(0, border + step) for border in borders for step in (-2, -1, 0, 1)})
    shape = Shape(
        rule=rule,
        seen=tuple(seen),
        new=(1,) * len(seen),
        rows=1,
        kv_heads=2,
        groups=3,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, alias=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("rows", [2, 16, 17, 31, 33, 64, 65])
def test_rows_and_keys_around_the_tiles(library, kind, rows, dtype):
    rule = {"self-extend": self_extend(8, 64), "dual-chunk": dual_chunk(64, 96)}.get(kind)
    shape = Shape(
        rule=rule or memory(4, 33, 8, 17, rows=rows),
        seen=(0, 63, 64, 130),
        new=(rows, rows - 1, 1, rows),
        rows=rows,
        dtype=dtype,
    )
    assert_matches_reference(library, shape, alias=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("dim", [8, 64, 80, 96, 128, 256])
def test_every_head_dim_and_layout(library, kind, dim, dtype):
    for rows, layout in ((1, Layout.PACKED), (16, Layout.TOKEN_MAJOR)):
        shape = Shape(
            rule=RULES[kind],
            seen=(70, 0),
            new=(rows, rows),
            rows=rows,
            dim=dim,
            kv_heads=2,
            groups=2,
            interleaved=dim == 80,
            rotary_dim={80: 32, 96: 6}.get(dim),
            frequency_batch=2,
            dtype=dtype,
        )
        assert_matches_reference(library, shape, layout=layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("rows", [1, 16])
def test_head_sink_softcap_and_no_rotation(library, kind, rows, dtype):
    for choice in ({"head_sink": True}, {"softcap": 2.0}, {"rotary_dim": 0, "head_sink": True}):
        shape = Shape(
            rule=RULES[kind],
            seen=(90, 5),
            new=(rows, 1),
            rows=rows,
            groups=3,
            dtype=dtype,
            **choice,
        )
        assert_matches_reference(library, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("rows", [1, 5])
def test_keys_split_over_blocks(library, kind, rows, dtype):
    """Lengths that leave splits without keys, with part of a tile, and with two parts each."""
    rule = {"self-extend": self_extend(8, 320), "dual-chunk": dual_chunk(300, 400)}.get(kind)
    shape = Shape(
        rule=rule or memory(4, 350, 8, 300, rows=rows),
        seen=(0, 70, 900 - rows),
        new=(rows, rows - 1, rows),
        rows=rows,
        dim=64,
        groups=4,
        head_sink=True,
        dtype=dtype,
    )
    case = make_case(shape)
    assert library.workspace_bytes(prepare(shape.rule, case, dtype, alias=True).params) > 0
    assert_matches_reference(library, shape, alias=True, workspace=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("alias", [False, True])
def test_any_split_of_a_text_gives_the_same(library, kind, alias, dtype):
    """Texts fed by ragged calls through many wraps of every ring; oracle: the float64 reference
    on the same calls."""
    element = DTYPES[dtype][1]
    rule = memory(2, 6, 3, 4, rows=7) if kind == "memory" else RULES[kind]
    text = make_text(rule, (83, 40, 1), dtype=element, seed=3)
    rng, left, chunks = np.random.default_rng(1), np.array((83, 40, 1)), []
    while left.any():
        chunks.append(np.minimum(rng.integers(0, 8, 3), left))
        left = left - chunks[-1]

    def step(case: FarCase) -> tuple[Any, Any, Any]:
        return run_case(library, rule, case, dtype, alias=alias)

    expected, _ = feed(rule.reference, text, chunks, 7)
    got, _ = feed(step, text, chunks, 7)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    # A block's mean is rounded once to the caches' type and read ever after.
    tolerance = {"float32": FLOAT32_TOLERANCE, "float16": 8e-3, "bfloat16": 6e-2}[dtype]
    assert np.nanmax(np.abs(got - expected)) <= tolerance


@pytest.mark.parametrize("kind", ["self-extend", "dual-chunk"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_past_the_last_slot_is_nan_and_unwritten(library, kind, dtype):
    shape = Shape(
        rule=RULES[kind], seen=(28, 32, 40), new=(7, 1, 3), rows=7, capacity=32, dtype=dtype
    )
    assert_matches_reference(library, shape)


@pytest.mark.parametrize("kind", RULES)
def test_counts_out_of_range_write_nothing_outside(library, kind):
    """`new` above S is S; a negative `new` is 0; a `seen` that is no count has no slots."""
    shape = Shape(rule=RULES[kind], seen=(40, 40, 40), new=(7, 7, 7), rows=7)
    case = make_case(shape)
    usual, *_ = run_case(library, shape.rule, case, "float32")
    for seen in (-5, 2**62 + 1, -(2**63)):
        odd = replace(case, seen=np.array([40, 40, seen]), new=np.array([99, -4, 7]))
        y, key, _ = run_case(library, shape.rule, odd, "float32")
        np.testing.assert_array_equal(y[0], usual[0])
        assert (y[1] == 0).all() and np.isnan(y[2]).all()
        np.testing.assert_array_equal(key[2], case.past_key[2].astype(np.float32))


def test_memory_far_along_keeps_its_slots(library):
    """Positions near 2^33: those of a nearby sequence, whole rounds of every ring later."""
    rule = RULES["memory"]
    shape = Shape(rule=rule, seen=(141,), new=(7,), rows=7)
    case = make_case(shape)
    block, slots = rule.numbers["block"], rule.numbers["memory_slots"]
    ring = shape.slots() - rule.near["sinks"] - slots
    step = np.lcm.reduce([block * slots, ring])
    far = 141 + 2**33 // step * step
    expected = run_case(library, rule, case, "float32")
    got = run_case(library, rule, replace(case, seen=np.array([far])), "float32")
    for one, other in zip(got, expected, strict=True):
        # Differences of positions are the same, their angles exact.
        np.testing.assert_allclose(one, other, rtol=0, atol=FLOAT32_TOLERANCE)
    assert far > 2**32 and filled_slots(shape, 141) == set(range(shape.slots()))


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "group is 0 and neighbor 24": ("self-extend", {"group": 0}),
    "group is 5 and neighbor 24": ("self-extend", {"group": 5}),
    "group is 4 and neighbor 0": ("self-extend", {"neighbor": 0}),
    f"neighbor {2**31}": ("self-extend", {"neighbor": 2**31}),
    "chunk is 0 and reach 37": ("dual-chunk", {"chunk": 0}),
    "chunk is 24 and reach 23": ("dual-chunk", {"reach": 23}),
    f"reach {2**31}": ("dual-chunk", {"reach": 2**31}),
    "sinks is -1": ("memory", {"sinks": -1}),
    "window 0": ("memory", {"window": 0}),
    "memory 0": ("memory", {"memory": 0}),
    "block 0": ("memory", {"block": 0}),
    "memory_slots is 7 .* give at least 8": ("memory", {"memorySlots": 7}),
    "is too small for 3 sinks, 8 memory slots and a ring of 39": ("memory", {"window": 20}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_rules_are_refused_with_a_message(library, fault):
    kind, changes = WRONG[fault]
    rule = RULES[kind]
    call = prepare(
        rule, make_case(Shape(rule=rule, seen=(9,), new=(16,), rows=16)), "float32", alias=False
    )
    for name, value in changes.items():
        setattr(call.params, name, value)
    if "too small" in fault:
        call.params.call.capacity -= 1
    with pytest.raises(KernelError, match=fault):
        library.run(f"ctx{kind.title().replace('-', '')}Attention", call, ())


def test_what_rules_share_is_checked(library):
    for kind, rule in RULES.items():
        case = make_case(Shape(rule=rule, seen=(9,), new=(2,), rows=2))
        call = prepare(rule, case, "float32", alias=False)
        call.params.call.headDim = 12
        with pytest.raises(KernelError, match="head dimension 12 is not supported"):
            library.run(f"ctx{kind.title().replace('-', '')}Attention", call, ())
