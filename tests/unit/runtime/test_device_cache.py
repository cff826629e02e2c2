"""Cache tensors in GPU memory, and the memory of a call's inputs. Oracle: the same in numpy.

The GPU is `fake_gpu.FakeGpu`, which also fails on every address that is not allocated.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from ctx_export.core.errors import UserError
from ctx_export.runtime.cache_codec import CacheCodec
from ctx_export.runtime.device_cache import DeviceTensor
from ctx_export.runtime.device_inputs import ALIGNMENT, DeviceInputs
from ctx_export.runtime.growth import grow_all
from tests.unit.runtime.fake_gpu import FakeGpu, Misuse

TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
SHAPE = (2, 3, 7, 5)
BYTES = {"float32": 840, "float16": 420, "bfloat16": 420}


def rows(count: int, dtype: str, seed: int = 0) -> NDArray[np.float32]:
    """Keys or values [B,H,count,D] that `dtype` cannot hold exactly, except float32."""
    random = np.random.default_rng(seed)
    return random.standard_normal((*SHAPE[:2], count, SHAPE[3])).astype(np.float32)


def rounded(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    return values.astype(TYPES[dtype]).astype(np.float32)


def filled(device: FakeGpu, dtype: str) -> tuple[DeviceTensor, NDArray[np.float32]]:
    """A tensor whose every slot holds something, and what that is."""
    tensor, given = DeviceTensor(device, SHAPE, CacheCodec(dtype=dtype)), rows(SHAPE[2], dtype)
    tensor.write(np.arange(SHAPE[2]), given)
    return tensor, rounded(given, dtype)


@pytest.mark.parametrize("dtype", ["int8", "float8e4m3fn"])
def test_a_quantised_cache_is_one_byte_an_element(dtype: str) -> None:
    """Oracle: the codec, which has its own tests."""
    scale = np.array([0.1, 0.2, 0.4], np.float32)
    codec = CacheCodec(dtype=dtype, scale=scale)
    tensor, given = DeviceTensor(FakeGpu(), SHAPE, codec), rows(3, dtype)
    assert tensor.nbytes == 210
    tensor.write(np.array([1, 2, 5]), given)
    tensor.resize(9)
    expected = np.zeros((*SHAPE[:2], 9, SHAPE[3]), np.float32)
    expected[:, :, [1, 2, 5]] = codec.read(codec.stored(given))
    np.testing.assert_array_equal(tensor.read(), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_fresh_memory_is_cleared(dtype: str) -> None:
    tensor = DeviceTensor(FakeGpu(), SHAPE, CacheCodec(dtype=dtype))
    assert (tensor.shape, tensor.slots, tensor.nbytes) == (SHAPE, 7, BYTES[dtype])
    read = tensor.read()
    assert read.dtype == np.float32 and read.shape == SHAPE and not read.any()


@pytest.mark.parametrize(
    ("slots", "copies"),
    [
        ([0, 1, 2, 3, 4, 5, 6], 1),
        ([2, 3, 4], 1),
        ([6], 1),
        ([5, 6, 0, 1], 2),
        ([4, 2, 0], 3),
        ([], 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_land_in_their_slots(dtype: str, slots: list[int], copies: int) -> None:
    device = FakeGpu()
    tensor, expected = filled(device, dtype)
    device.uploads = 0
    given = rows(len(slots), dtype, seed=1)
    tensor.write(np.array(slots, np.int64), given)
    expected[:, :, slots] = rounded(given, dtype)
    np.testing.assert_array_equal(tensor.read(), expected)
    assert device.uploads == copies


def test_rows_may_be_a_view_of_another_type() -> None:
    tensor = DeviceTensor(FakeGpu(), SHAPE, CacheCodec(dtype="float16"))
    given = np.arange(420.0).reshape(5, 14, 3, 2).transpose(3, 2, 1, 0)[:, :, ::2]
    tensor.write(np.arange(7), given)
    np.testing.assert_array_equal(tensor.read(), given.astype(np.float16))


@pytest.mark.parametrize("slots", [1, 6, 8, 19])
@pytest.mark.parametrize("dtype", TYPES)
def test_another_size_keeps_what_fits(dtype: str, slots: int) -> None:
    device = FakeGpu()
    tensor, before = filled(device, dtype)
    old = tensor.address
    tensor.resize(slots)
    expected = np.zeros((*SHAPE[:2], slots, SHAPE[3]), np.float32)
    kept = min(slots, SHAPE[2])
    expected[:, :, :kept] = before[:, :, :kept]
    np.testing.assert_array_equal(tensor.read(), expected)
    assert tensor.address != old and device.used == tensor.nbytes
    assert device.peak == BYTES[dtype] + tensor.nbytes


@pytest.mark.parametrize("dtype", TYPES)
def test_no_memory_for_another_size_leaves_the_tensor(dtype: str) -> None:
    device = FakeGpu(total=2 * BYTES[dtype])
    tensor, before = filled(device, dtype)
    with pytest.raises(UserError, match="the GPU has no"):
        tensor.resize(8)
    assert tensor.shape == SHAPE and device.used == BYTES[dtype]
    np.testing.assert_array_equal(tensor.read(), before)
    tensor.resize(7)
    np.testing.assert_array_equal(tensor.read(), before)


@pytest.mark.parametrize(("slots", "copied"), [(0, 0), (1, 1), (7, 7), (9, 7)])
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_are_copied_and_cleared_up_to_a_slot(dtype: str, slots: int, copied: int) -> None:
    device = FakeGpu()
    tensor, expected = filled(device, dtype)
    tensor.copy_row(1, 0, slots)
    tensor.copy_row(1, 1, slots)
    expected[0, :, :copied] = expected[1, :, :copied]
    np.testing.assert_array_equal(tensor.read(), expected)
    tensor.zero(1, slots)
    expected[1, :, :copied] = 0
    np.testing.assert_array_equal(tensor.read(), expected)


def test_free_gives_the_memory_back_once() -> None:
    device = FakeGpu()
    tensor, _ = filled(device, "float32")
    tensor.free()
    assert device.used == 0
    with pytest.raises(Misuse, match="no live allocation"):
        tensor.free()


def tensors(device: FakeGpu) -> list[DeviceTensor]:
    """Caches of layers with different numbers of heads."""
    made = []
    for heads in (3, 1, 2):
        for _ in ("key", "value"):
            tensor = DeviceTensor(device, (2, heads, 8, 4), CacheCodec(dtype="float32"))
            values = np.random.default_rng(len(made)).standard_normal(tensor.shape)
            tensor.write(np.arange(8), values)
            made.append(tensor)
    return made


def test_growing_needs_the_old_memory_of_one_tensor_at_a_time() -> None:
    device = FakeGpu()
    caches = tensors(device)
    grow_all(caches, 10)
    assert [tensor.slots for tensor in caches] == [10] * 6
    # All six grown, and the last one's old memory still there.
    assert device.peak == (2 * 3 + 2 * 1 + 2 * 2) * 2 * 10 * 4 * 4 + 2 * 2 * 8 * 4 * 4
    assert device.used == sum(tensor.nbytes for tensor in caches)


def test_caches_grow_together_or_not_at_all() -> None:
    """Memory for any number of bytes: either all grow, or all are as they were."""
    device = FakeGpu()
    before = [tensor.read() for tensor in tensors(device)]
    start = device.used
    outcomes = []
    for spare in range(0, start, 128):
        device = FakeGpu()
        caches = tensors(device)
        device.total = start + spare
        try:
            grow_all(caches, 10)
            outcomes.append("grown")
        except UserError:
            outcomes.append("kept")
        slots = 10 if outcomes[-1] == "grown" else 8
        assert [tensor.slots for tensor in caches] == [slots] * 6
        assert device.used == sum(tensor.nbytes for tensor in caches)
        for tensor, held in zip(caches, before, strict=True):
            np.testing.assert_array_equal(tensor.read()[:, :, :8], held)
            assert not tensor.read()[:, :, 8:].any()
    assert set(outcomes) == {"grown", "kept"} and outcomes == sorted(outcomes, reverse=True)


def test_caches_with_enough_slots_stay() -> None:
    device = FakeGpu()
    caches = tensors(device)
    addresses = [tensor.address for tensor in caches]
    grow_all(caches, 8)
    grow_all(caches, 3)
    assert [tensor.address for tensor in caches] == addresses


def test_inputs_go_to_the_device_in_one_aligned_copy() -> None:
    device = FakeGpu()
    inputs = DeviceInputs(device, tensors=3, elements=80)
    random = np.random.default_rng(2)
    for sizes in ((33, 3, 44), (1, 1, 1), (32, 16, 32)):
        arrays = {name: random.integers(0, 99, n) for name, n in zip("abc", sizes, strict=True)}
        device.uploads = 0
        addresses = inputs.put(arrays)
        device.synchronize()
        assert device.uploads == 1
        for name, array in arrays.items():
            assert addresses[name] % ALIGNMENT == 0
            found = device.view(addresses[name], array.nbytes).view(np.int64)
            assert found.tolist() == array.tolist()
    inputs.free()
    assert device.used == 0


def test_inputs_of_two_calls_must_not_overlap_in_time() -> None:
    """The fake notices what a GPU would not."""
    device = FakeGpu()
    inputs = DeviceInputs(device, tensors=1, elements=4)
    inputs.put({"a": np.array([1, 2])})
    inputs.put({"a": np.array([3, 4])})
    with pytest.raises(Misuse, match="changed or went"):
        device.synchronize()


def test_the_fake_notices_misuse() -> None:
    device = FakeGpu()
    address = device.malloc(64)
    for start, size in product((address - 1, address + 1), (64, 65)):
        with pytest.raises(Misuse, match="outside of every live allocation"):
            device.zero(start, size)
    device.view(address, 64)
    device.zero(address, 64)
    with pytest.raises(Misuse, match="queued work uses"):
        device.free(address)
    device.upload(address, np.zeros(8))
    with pytest.raises(Misuse, match="changed or went"):
        device.synchronize()
    with pytest.raises(Misuse, match="overlaps"):
        device.copy_rows((address, 16), (address + 8, 16), 16, 2)
    memory = next(iter(device._memory.values()))
    memory[-1] = 0
    with pytest.raises(Misuse, match="passed the end"):
        device.synchronize()
    memory[-1] = 0xA5
    with pytest.raises(AssertionError, match="1 allocations leak"):
        device.close() or device.check_released()
    with pytest.raises(Misuse, match="after it was closed"):
        device.malloc(1)
