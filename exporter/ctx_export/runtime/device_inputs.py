"""The small integer inputs of a call, taken to the GPU in one copy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ctx_export.runtime.backend import Ints
from ctx_export.runtime.cuda import Device

ALIGNMENT = 256  # bytes; what TensorRT asks of a tensor's address
_STEP = ALIGNMENT // 8


class DeviceInputs:
    """Memory on both sides for up to `tensors` int64 arrays with `elements` elements in all."""

    def __init__(self, device: Device, tensors: int, elements: int) -> None:
        self._device = device
        self._host = np.zeros(elements + tensors * _STEP, np.int64)
        self._address = device.malloc(self._host.nbytes)

    def put(self, arrays: Mapping[str, Ints]) -> dict[str, int]:
        """Address of each array. They stay until the next `put`, before which the device must
        have been synchronized."""
        addresses, start = {}, 0
        for name, array in arrays.items():
            self._host[start : start + array.size] = array.reshape(-1)
            addresses[name] = self._address + start * 8
            start += -(-array.size // _STEP) * _STEP
        self._device.upload(self._address, self._host[:start])
        return addresses

    def free(self) -> None:
        self._device.free(self._address)
