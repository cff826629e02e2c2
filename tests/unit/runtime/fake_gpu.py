"""A GPU of host memory that does what it is asked as late as CUDA may, and forgives nothing.

Fresh memory holds NaN in every element type, guards surround every allocation, and what is queued
on the stream runs at the next synchronization, with the host memory that is there by then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError
from ctx_export.runtime.cuda import Rows

_GUARD, _GUARD_BYTE, _FRESH_BYTE = 64, 0xA5, 0xFF
_ALIGNMENT = 512  # cudaMalloc's
Bytes = NDArray[np.uint8]
Range = tuple[int, int]  # address, bytes


class Misuse(AssertionError):
    """What would have been a crash or silent corruption on a GPU."""


@dataclass
class Queued:
    """Work on the stream, with the device ranges that it touches."""

    ranges: list[Range]
    run: Callable[[], None]


class FakeGpu:
    """A `Device`. `total` bytes of memory; allocations with the numbers in `fail_at` fail too."""

    def __init__(self, total: int = 1 << 40) -> None:
        self.stream = 7
        self.total = total
        self.fail_at: set[int] = set()
        self.allocations = 0  # so far
        self.peak = 0
        self.uploads = 0
        self.closed = False
        self._memory: dict[int, Bytes] = {}  # by address, guards included
        self._queue: list[Queued] = []
        self._next = 1 << 33  # beyond 32 bits, as on a GPU

    @property
    def used(self) -> int:
        return sum(len(memory) - 2 * _GUARD for memory in self._memory.values())

    def malloc(self, nbytes: int) -> int:
        self._open()
        if nbytes <= 0:
            raise Misuse(f"{nbytes} bytes allocated")
        number, self.allocations = self.allocations, self.allocations + 1
        if number in self.fail_at or self.used + nbytes > self.total:
            raise UserError(f"the GPU has no {nbytes} bytes left")
        address = self._next
        self._next += -(-(nbytes + 1) // _ALIGNMENT) * _ALIGNMENT
        memory = np.full(nbytes + 2 * _GUARD, _GUARD_BYTE, np.uint8)
        memory[_GUARD:-_GUARD] = _FRESH_BYTE
        self._memory[address] = memory
        self.peak = max(self.peak, self.used)
        return address

    def free(self, address: int) -> None:
        self._open()
        if address not in self._memory:
            raise Misuse(f"{address:#x} is freed, which is no live allocation")
        size = len(self._memory[address]) - 2 * _GUARD
        for work in self._queue:
            if any(start < address + size and address < start + n for start, n in work.ranges):
                raise Misuse("memory is freed that queued work uses")
        self._check_guards(self._memory.pop(address))

    def zero(self, address: int, nbytes: int) -> None:
        self._enqueue([(address, nbytes)], lambda: self.view(address, nbytes).fill(0))

    def zero_rows(self, target: Rows, width: int, height: int) -> None:
        def run() -> None:
            for start, size in rows:
                self.view(start, size).fill(0)

        rows = list(_rows(target, width, height))
        self._enqueue(rows, run)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        self.upload_rows((address, array.nbytes), array, 1)

    def upload_rows(self, target: Rows, array: NDArray[Any], height: int) -> None:
        if not array.flags.c_contiguous:
            raise Misuse("an array with gaps is uploaded")
        owner = array if array.base is None else array.base
        first = array.ctypes.data - owner.ctypes.data
        alive, before = weakref.ref(owner), array.tobytes()
        width = array.nbytes // height
        rows = list(_rows(target, width, height))

        def run() -> None:
            memory = alive()
            if memory is None or memory.tobytes("A")[first : first + len(before)] != before:
                raise Misuse("an uploaded array changed or went before the device was done")
            data = np.frombuffer(before, np.uint8)
            for row, (start, size) in enumerate(rows):
                self.view(start, size)[:] = data[row * width :][:size]

        self.uploads += 1
        self._enqueue(rows, run)

    def download(self, array: NDArray[Any], address: int) -> None:
        if not array.flags.c_contiguous:
            raise Misuse("an array with gaps is downloaded into")
        self.synchronize()
        array.reshape(-1).view(np.uint8)[:] = self.view(address, array.nbytes)

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int) -> None:
        targets, sources = (list(_rows(side, width, height)) for side in (target, source))
        for start, size in targets:
            if any(start < other + size and other < start + size for other, _ in sources):
                raise Misuse("a copy overlaps its source")

        def run() -> None:
            for (to, size), (start, _) in zip(targets, sources, strict=True):
                self.view(to, size)[:] = self.view(start, size)

        self._enqueue(targets + sources, run)

    def launch(self, ranges: list[Range], run: Callable[[], None]) -> None:
        """Queue a kernel that uses `ranges`."""
        self._enqueue(ranges, run)

    def synchronize(self) -> None:
        self._open()
        queue, self._queue = self._queue, []
        for work in queue:
            work.run()
        for memory in self._memory.values():
            self._check_guards(memory)

    def close(self) -> None:
        self._open()
        if self._queue:
            raise Misuse("the stream is destroyed with work on it")
        self.closed = True

    def view(self, address: int, nbytes: int) -> Bytes:
        """The bytes of a range, which has to lie within one live allocation."""
        for start, memory in self._memory.items():
            if start <= address and address + nbytes <= start + len(memory) - 2 * _GUARD:
                first = address - start + _GUARD
                return memory[first : first + nbytes]
        raise Misuse(f"{nbytes} bytes at {address:#x} are outside of every live allocation")

    def check_released(self) -> None:
        """Everything has been freed and the stream destroyed."""
        assert self.closed and not self._memory, f"{len(self._memory)} allocations leak"

    def _open(self) -> None:
        if self.closed:
            raise Misuse("the device is used after it was closed")

    def _enqueue(self, ranges: list[Range], run: Callable[[], None]) -> None:
        self._open()
        for address, nbytes in ranges:
            self.view(address, nbytes)
        self._queue.append(Queued(ranges, run))

    @staticmethod
    def _check_guards(memory: Bytes) -> None:
        if (memory[:_GUARD] != _GUARD_BYTE).any() or (memory[-_GUARD:] != _GUARD_BYTE).any():
            raise Misuse("a write passed the end of its allocation")


def _rows(first: Rows, width: int, height: int) -> Iterator[Range]:
    address, pitch = first
    if not 0 < width <= pitch or height < 1:
        raise Misuse(f"{height} rows of {width} bytes in a pitch of {pitch}")
    for row in range(height):
        yield address + row * pitch, width
