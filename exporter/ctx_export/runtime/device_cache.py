"""One cache tensor [B,H,C,D] in GPU memory; past and present are the same address."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.runtime.backend import Floats, Ints
from ctx_export.runtime.cache_codec import NUMPY_TYPES, CacheCodec
from ctx_export.runtime.cuda import Device

Shape = tuple[int, int, int, int]


class DeviceTensor:
    """A cache's memory; `address` changes when it is resized."""

    def __init__(self, device: Device, shape: Shape, codec: CacheCodec) -> None:
        self._device = device
        self._codec = codec
        self.shape = shape
        self.address = device.malloc(self.nbytes)
        device.zero(self.address, self.nbytes)

    @property
    def slots(self) -> int:
        return self.shape[2]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self._type.itemsize

    @property
    def _type(self) -> np.dtype[Any]:
        stored: np.dtype[Any] = np.dtype(NUMPY_TYPES[self._codec.dtype])
        return stored

    @property
    def _slot(self) -> int:
        """Bytes of one head's slot."""
        return self.shape[3] * self._type.itemsize

    @property
    def _pitch(self) -> int:
        """Bytes from one head to the next."""
        return self.slots * self._slot

    @property
    def _heads(self) -> int:
        """Heads of all sequences."""
        return self.shape[0] * self.shape[1]

    def resize(self, slots: int) -> None:
        """Other memory with `slots` slots; the first ones keep their contents, new ones hold
        zeros. Where there is no such memory, everything stays as it was."""
        device, old, old_pitch = self._device, self.address, self._pitch
        address = device.malloc(self._heads * slots * self._slot)
        self.address, self.shape = address, (*self.shape[:2], slots, self.shape[3])
        pitch = self._pitch
        kept = min(old_pitch, pitch)
        device.copy_rows((address, pitch), (old, old_pitch), kept, self._heads)
        if pitch > kept:
            device.zero_rows((address + kept, pitch), pitch - kept, self._heads)
        device.synchronize()  # before the memory that is read is given back
        device.free(old)

    def copy_row(self, source: int, target: int, slots: int) -> None:
        width = min(slots, self.slots) * self._slot
        if width and source != target:
            self._device.copy_rows(self._row(target), self._row(source), width, self.shape[1])

    def zero(self, row: int, slots: int) -> None:
        width = min(slots, self.slots) * self._slot
        if width:
            self._device.zero_rows(self._row(row), width, self.shape[1])

    def write(self, slots: Ints, rows: NDArray[Any]) -> None:
        """Put rows [B,H,P,D] into `slots` [P], one copy for each run of neighbouring slots."""
        stored = self._codec.stored(rows)
        parts = []
        for start, end in _runs(slots):
            parts.append(np.ascontiguousarray(stored[:, :, start:end]))
            target = self.address + int(slots[start]) * self._slot
            self._device.upload_rows((target, self._pitch), parts[-1], self._heads)
        self._device.synchronize()  # before the parts are gone

    def read(self) -> Floats:
        """A float32 copy [B,H,C,D]."""
        array = np.empty(self.shape, self._type)
        self._device.download(array, self.address)
        return self._codec.read(array)

    def free(self) -> None:
        self._device.free(self.address)

    def _row(self, row: int) -> tuple[int, int]:
        """One sequence's heads."""
        return self.address + row * self.shape[1] * self._pitch, self._pitch


def _runs(slots: Ints) -> Iterator[tuple[int, int]]:
    """(start, end) of every stretch of `slots` that counts up by one."""
    breaks = np.flatnonzero(np.diff(slots) != 1) + 1
    edges = [0, *breaks.tolist(), len(slots)]
    for start, end in pairwise(edges):
        if end > start:
            yield start, end
