"""One cache tensor [B,H,C,D] in GPU memory; past and present are the same address."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.runtime.backend import Floats, Ints
from ctx_export.runtime.cuda import Device
from ctx_export.runtime.ort_cache import NUMPY_TYPES
from ctx_export.runtime.twin import narrow, widen

Shape = tuple[int, int, int, int]


class DeviceTensor:
    """A cache's memory; `address` changes when it grows."""

    def __init__(self, device: Device, shape: Shape, dtype: str) -> None:
        self._device = device
        self._dtype = dtype
        self.shape = shape
        self.address = device.malloc(self.nbytes)
        device.zero(self.address, self.nbytes)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self._item

    @property
    def _item(self) -> int:
        return int(np.dtype(NUMPY_TYPES[self._dtype]).itemsize)

    @property
    def _pitch(self) -> int:
        """Bytes of one head's slots."""
        return self.shape[2] * self.shape[3] * self._item

    def resize(self, slots: int) -> None:
        """Other memory with `slots` slots; the first ones keep their contents."""
        device, old, old_pitch = self._device, self.address, self._pitch
        new_shape = (*self.shape[:2], slots, self.shape[3])
        nbytes = math.prod(new_shape) * self._item
        address = device.malloc(nbytes)
        device.zero(address, nbytes)
        self.shape, self.address = new_shape, address
        rows = self.shape[0] * self.shape[1]
        width = min(old_pitch, self._pitch)
        device.copy_rows((address, self._pitch), (old, old_pitch), width, rows)
        device.synchronize()  # before the memory it reads is given back
        device.free(old)

    def copy_row(self, source: int, target: int) -> None:
        size = self.shape[1] * self._pitch
        self._device.copy(self.address + target * size, self.address + source * size, size)

    def zero(self, row: int) -> None:
        size = self.shape[1] * self._pitch
        self._device.zero(self.address + row * size, size)

    def write(self, slots: Ints, rows: NDArray[Any]) -> None:
        """Put rows [B,H,P,D] into `slots` [P], one copy for each run of neighbouring slots."""
        stored = narrow(rows) if self._dtype == "bfloat16" else rows.astype(self._type)
        slot_bytes = self.shape[3] * self._item
        for start, end in _runs(slots):
            part = np.ascontiguousarray(stored[:, :, start:end])
            width = (end - start) * slot_bytes
            target = self.address + int(slots[start]) * slot_bytes
            self._device.copy_rows(
                (target, self._pitch), (part, width), width, self.shape[0] * self.shape[1]
            )

    def read(self) -> Floats:
        """A float32 copy [B,H,C,D]."""
        array = np.empty(self.shape, self._type)
        self._device.download(array, self.address)
        return widen(array) if self._dtype == "bfloat16" else array.astype(np.float32)

    def free(self) -> None:
        self._device.free(self.address)

    @property
    def _type(self) -> Any:
        return NUMPY_TYPES[self._dtype]


def _runs(slots: Ints) -> Iterator[tuple[int, int]]:
    """(start, end) of every stretch of `slots` that counts up by one."""
    breaks = np.flatnonzero(np.diff(slots) != 1) + 1
    edges = [0, *breaks.tolist(), len(slots)]
    for start, end in pairwise(edges):
        if end > start:
            yield start, end
