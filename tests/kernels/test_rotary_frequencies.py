"""RotaryFrequencies' kernel, executed by the host; oracles: ops.reference and the body."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ctx_export.ops.reference import rotary_frequencies as reference
from tests.kernels.kernel_library import Call, FrequenciesParams, KernelError, KernelLibrary
from tests.support.frequencies import LENGTHS, TABLES, run_body, wide_table

OUTPUTS = ("inverseFrequency", "multiplier")


def prepare(
    lengths: NDArray[np.int64], tables: NDArray[np.float32], scalars: NDArray[np.float32]
) -> Call:
    pairs = tables.shape[2]
    params = FrequenciesParams(
        size=ctypes.sizeof(FrequenciesParams), batch=len(lengths), pairs=pairs
    )
    call = Call(params)
    call.point("ropeLength", lengths)
    call.point("tables", tables)
    call.point("scalars", scalars)
    call.point("inverseFrequency", np.full((len(lengths), pairs), -7, np.float32))
    call.point("multiplier", np.full(len(lengths), -7, np.float32))
    return call


def run(library: KernelLibrary, *arguments: Any) -> list[NDArray[np.float32]]:
    call = prepare(*arguments)
    library.run("ctxRotaryFrequencies", call, OUTPUTS)
    return [call.buffers[name].values for name in OUTPUTS]


@pytest.mark.parametrize("name", TABLES)
def test_kernel_matches_float64(library, name):
    packed = TABLES[name]().packed()
    lengths = np.array(LENGTHS)
    for got, want in zip(run(library, lengths, *packed), reference(lengths, *packed), strict=True):
        assert got.dtype == np.float32 and got.shape == want.shape
        # One rounding to float32 is half a unit in the last place, 2^-24.
        np.testing.assert_allclose(got, want, rtol=2.0**-24 * 1.000001, atol=0)


@pytest.mark.parametrize("name", TABLES)
def test_kernel_and_body_differ_by_one_unit_at_most(library, name):
    packed = TABLES[name]().packed()
    rng = np.random.default_rng(5)
    lengths = np.concatenate([LENGTHS, rng.integers(1, 1 << 18, 50)])
    for got, want in zip(run(library, lengths, *packed), run_body(lengths, *packed), strict=True):
        units = np.abs(got.view(np.int32).astype(np.int64) - want.view(np.int32))
        assert units.max() <= 1


@pytest.mark.parametrize("pairs", [1, 19, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("batch", [1, 3])
def test_sizes_around_a_block(library, pairs, batch):
    rng = np.random.default_rng(pairs)
    tables = rng.uniform(0, 1, (4, 2, pairs)).astype(np.float32)
    tables[:, 1] *= np.float32(2.0**-25)
    scalars = np.zeros((7, 2), np.float32)
    scalars[:, 0] = [5, 0.5, -0.25, 1.5, 2.5, 0.1, 0.05]
    lengths = np.array([4, 6, 1000])[:batch]
    for got, want in zip(
        run(library, lengths, tables, scalars), reference(lengths, tables, scalars), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=2.0**-24 * 1.000001, atol=0)


@pytest.mark.parametrize("threshold", [(1 << 24) + 1, (1 << 40) + 1])
def test_the_switch_is_exact_past_float32(library, threshold):
    lengths = np.array([threshold - 1, threshold, threshold + 1])
    _, multiplier = run(library, lengths, *wide_table(threshold).packed())
    np.testing.assert_array_equal(multiplier, [1.0, 1.0, 2.0])


def test_a_length_of_zero_or_less_is_that_of_no_growth(library):
    packed = TABLES["dynamic-ntk"]().packed()
    inv_freq, _ = run(library, np.array([0, -5, 1]), *packed)
    np.testing.assert_array_equal(inv_freq[0], inv_freq[2])
    np.testing.assert_array_equal(inv_freq[1], inv_freq[2])


def test_empty_batch_is_fine(library):
    call = prepare(np.array([1]), *TABLES["longrope"]().packed())
    call.params.batch = 0
    library.run("ctxRotaryFrequencies", call, ())


WRONG: dict[str, dict[str, Any]] = {
    "tables 0 frequencies": {"pairs": 0},
    "rope_length has -1 entries": {"batch": -1},
    "each below 2\\^31": {"batch": 2**31},
    "at most 2\\^37 outputs": {"batch": 2**20, "pairs": 2**18},
    "null tensor": {"scalars": None},
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_parameters_are_refused_with_a_message(library, fault):
    call = prepare(np.array([1]), *TABLES["longrope"]().packed())
    for name, value in WRONG[fault].items():
        setattr(call.params, name, value)
    with pytest.raises(KernelError, match=fault):
        library.run("ctxRotaryFrequencies", call, ())


@pytest.mark.parametrize("name", ["ropeLength", "tables", "scalars", *OUTPUTS])
def test_memory_not_aligned_to_its_elements_is_refused(library, name):
    call = prepare(np.array([1]), *TABLES["longrope"]().packed())
    setattr(call.params, name, getattr(call.params, name) + 2)
    with pytest.raises(KernelError, match="aligned to its elements"):
        library.run("ctxRotaryFrequencies", call, ())


def test_struct_without_its_size_is_refused(library):
    status, text = library.raw("ctxRotaryFrequencies", FrequenciesParams())
    assert status == 1
    assert "size" in text
