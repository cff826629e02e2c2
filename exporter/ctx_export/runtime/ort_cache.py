"""One cache tensor [B,H,C,D] of the onnxruntime backend, past and present in the same memory."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.cache_type import FLOAT8
from ctx_export.runtime.backend import Floats, Ints
from ctx_export.runtime.cache_codec import NUMPY_TYPES, TYPES_AS_BITS, CacheCodec

_BYTE = 2  # uint8, which more providers copy than float8
ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16, "float8e4m3fn": 17, "int8": 3}


class Memory(NamedTuple):
    """A contiguous tensor [B,H,C,D] somewhere."""

    device: str  # as onnxruntime calls it
    address: int
    shape: tuple[int, ...]


class CacheTensor:
    """Memory that graph input and output both name. On a CPU it is a numpy array that onnxruntime
    uses as it lies; on another device it is onnxruntime's, and changes go through the host."""

    def __init__(
        self, shape: tuple[int, int, int, int], codec: CacheCodec, device: str, *, staged: bool
    ) -> None:
        self._codec = codec
        self._dtype = codec.dtype
        self._device = device
        self._staged = staged  # the device's memory is not the host array's
        self._host: NDArray[Any] | None = None
        self.value: Any = None
        self._place(np.zeros(shape, NUMPY_TYPES[codec.dtype]))

    @property
    def slots(self) -> int:
        return int(self.value.shape()[2])

    @property
    def nbytes(self) -> int:
        elements: int = math.prod(self.value.shape())
        return elements * int(np.dtype(NUMPY_TYPES[self._dtype]).itemsize)

    def resize(self, slots: int) -> None:
        """Other memory with `slots` slots; the first ones keep their contents, new ones hold
        zeros."""
        old = self._fetch()
        new = np.zeros((*old.shape[:2], slots, old.shape[3]), old.dtype)
        kept = min(slots, old.shape[2])
        new[:, :, :kept] = old[:, :, :kept]
        self._place(new)

    def copy_row(self, source: int, target: int, slots: int) -> None:
        if self._host is None:
            self._copy(self._row(source), self._row(target))
        else:
            self._host[target, :, :slots] = self._host[source, :, :slots]

    def zero(self, row: int, slots: int) -> None:
        if self._host is None:
            zeros = np.zeros((1, *self.value.shape()[1:]), NUMPY_TYPES[self._dtype])
            self._copy(_host_memory(zeros), self._row(row))
        else:
            self._host[row, :, :slots] = 0

    def write(self, slots: Ints, rows: NDArray[Any]) -> None:
        """Put rows [B,H,P,D] into `slots` [P]."""
        array = self._fetch()
        array[:, :, slots] = self._codec.stored(rows)
        self._commit(array)

    def read(self) -> Floats:
        """A float32 copy [B,H,C,D]."""
        return self._codec.read(self._fetch())

    def _fetch(self) -> NDArray[Any]:
        if self._host is not None:
            return self._host
        array = np.empty(self.value.shape(), NUMPY_TYPES[self._dtype])
        self._copy(self._all(), _host_memory(array))
        return array

    def _commit(self, array: NDArray[Any]) -> None:
        if self._host is None:
            self._copy(_host_memory(array), self._all())

    def _all(self) -> Memory:
        return Memory(self._device, self.value.data_ptr(), tuple(self.value.shape()))

    def _row(self, row: int) -> Memory:
        """One sequence's part."""
        shape = self.value.shape()
        start = self.value.data_ptr() + row * (self.nbytes // shape[0])
        return Memory(self._device, start, (1, *shape[1:]))

    def _copy(self, source: Memory, target: Memory) -> None:
        """Copy between devices, for which a bound run of one Identity is the way that every
        provider and element type has."""
        element = _BYTE if self._dtype == FLOAT8.dtype else ONNX_TYPES[self._dtype]
        session = _identity(element, self._device)
        binding = session.io_binding()
        shape = list(source.shape)
        binding.bind_input("x", source.device, 0, element, shape, source.address)
        binding.bind_output("y", target.device, 0, element, shape, target.address)
        session.run_with_iobinding(binding)

    def _place(self, array: NDArray[Any]) -> None:
        if not self._staged:
            self._host, self.value = array, self._wrapped(array)
            return
        import onnxruntime as ort

        self.value = ort.OrtValue.ortvalue_from_shape_and_type(
            list(array.shape), ONNX_TYPES[self._dtype], self._device, 0
        )
        self._commit(array)

    def _wrapped(self, array: NDArray[Any]) -> Any:
        import onnxruntime as ort

        if self._dtype in TYPES_AS_BITS:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_TYPES[self._dtype])
        return ort.OrtValue.ortvalue_from_numpy(array)


def _host_memory(array: NDArray[Any]) -> Memory:
    return Memory("cpu", array.ctypes.data, array.shape)


@cache
def _identity(element: int, device: str) -> Any:
    """A session of one Identity on `device`."""
    import onnx
    import onnxruntime as ort

    x, y = (onnx.helper.make_tensor_value_info(name, element, list("bhsd")) for name in "xy")
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "copy", [x], [y]),
        opset_imports=[onnx.helper.make_opsetid("", 23)],
        ir_version=10,
    )
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    return ort.InferenceSession(model.SerializeToString(), settings, providers=providers)
