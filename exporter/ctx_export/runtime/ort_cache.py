"""One cache tensor [B,H,C,D] of the onnxruntime backend, past and present in the same memory."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.runtime.backend import Floats, Ints
from ctx_export.runtime.twin import narrow, widen

# bfloat16 travels as its bits: numpy has no such type of its own.
NUMPY_TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}
ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}


class CacheTensor:
    """Memory that graph input and output both name. On a CPU it is a numpy array that onnxruntime
    uses as it lies; on another device it is onnxruntime's, and changes go through the host."""

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: str, device: str, *, staged: bool
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._staged = staged  # the device's memory is not the host array's
        self._host: NDArray[Any] | None = None
        self.value: Any = None
        self._place(np.zeros(shape, NUMPY_TYPES[dtype]))

    @property
    def slots(self) -> int:
        return int(self.value.shape()[2])

    @property
    def nbytes(self) -> int:
        elements: int = math.prod(self.value.shape())
        return elements * int(np.dtype(NUMPY_TYPES[self._dtype]).itemsize)

    def grow(self, slots: int) -> None:
        """More slots, zeros at the end."""
        old = self._fetch()
        new = np.zeros((*old.shape[:2], slots, old.shape[3]), old.dtype)
        new[:, :, : old.shape[2]] = old
        self._place(new)

    def copy_row(self, source: int, target: int) -> None:
        array = self._fetch()
        array[target] = array[source]
        self._commit(array)

    def zero(self, row: int) -> None:
        array = self._fetch()
        array[row] = 0
        self._commit(array)

    def write(self, slots: Ints, rows: NDArray[Any]) -> None:
        """Put rows [B,H,P,D] into `slots` [P]."""
        array = self._fetch()
        bfloat16 = self._dtype == "bfloat16"
        array[:, :, slots] = narrow(rows) if bfloat16 else rows.astype(array.dtype)
        self._commit(array)

    def read(self) -> Floats:
        """A float32 copy [B,H,C,D]."""
        array = self._fetch()
        return widen(array) if self._dtype == "bfloat16" else array.astype(np.float32)

    def _fetch(self) -> NDArray[Any]:
        if not self._staged:
            assert self._host is not None
            return self._host
        array = np.empty(self.value.shape(), NUMPY_TYPES[self._dtype])
        self._copy(self.value, self._wrapped(array))
        return array

    def _commit(self, array: NDArray[Any]) -> None:
        if self._staged:
            self._copy(self._wrapped(array), self.value)

    def _copy(self, source: Any, target: Any) -> None:
        """Copy between devices, for which a bound run of one Identity is the way that every
        provider and element type has."""
        session = _identity(ONNX_TYPES[self._dtype], self._device)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", source)
        binding.bind_ortvalue_output("y", target)
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

        if self._dtype == "bfloat16":
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_TYPES["bfloat16"])
        return ort.OrtValue.ortvalue_from_numpy(array)


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
