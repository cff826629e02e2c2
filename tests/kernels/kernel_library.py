"""Kernels run on guarded buffers: by the host on its own memory, or by a GPU on copies of it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ctx_export.runtime.cuda import Device
from tools.gpu.kernels import DATA_TYPES, KernelError, Kernels, struct

__all__ = ["DTYPES", "Buffer", "Call", "KernelError", "KernelLibrary"]

_ELEMENTS: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
DTYPES: dict[str, tuple[int, np.dtype[Any]]] = {
    name: (code, np.dtype(_ELEMENTS[name])) for name, code in DATA_TYPES.items()
}
FrequenciesParams = struct("CtxRotaryFrequenciesParams")
RotaryParams = struct("CtxScaledRotaryEmbeddingParams")
AttentionParams = struct("CtxSinkWindowAttentionParams")
LandmarkParams = struct("CtxLandmarkAttentionParams")
SelfExtendParams = struct("CtxSelfExtendAttentionParams")
DualChunkParams = struct("CtxDualChunkAttentionParams")
MemoryParams = struct("CtxMemoryAttentionParams")
Strides = struct("CtxStrides")
GUARD_BYTES = 256
GUARD = 0xA5
_ALIGNMENT = 64  # of a buffer's first element, on the host as on the device


class Buffer:
    """An array with guard bytes on both sides, aligned as device memory is, or `misalign` off."""

    def __init__(self, values: NDArray[Any], misalign: int = 0) -> None:
        self.shape, self.dtype = values.shape, values.dtype
        self.memory = np.full(values.nbytes + 2 * GUARD_BYTES + _ALIGNMENT, GUARD, np.uint8)
        first = -(self.memory.ctypes.data + GUARD_BYTES) % _ALIGNMENT
        self._begin = GUARD_BYTES + misalign + first
        self._end = self._begin + values.nbytes
        self.memory[self._begin : self._end] = np.ascontiguousarray(values).view(np.uint8).ravel()

    @property
    def pointer(self) -> int:
        return self.memory.ctypes.data + self._begin

    @property
    def values(self) -> NDArray[Any]:
        return self.memory[self._begin : self._end].view(self.dtype).reshape(self.shape)

    def assert_guards_untouched(self) -> None:
        assert (self.memory[: self._begin] == GUARD).all(), "written before the buffer"
        assert (self.memory[self._end :] == GUARD).all(), "written past the buffer"


@dataclass
class Call:
    """Buffers and scalars of one call; after it, inputs and guards must be as before."""

    params: Any
    buffers: dict[str, Buffer] = field(default_factory=dict)

    def point(self, name: str, values: NDArray[Any] | None, misalign: int = 0) -> None:
        if values is None:
            return
        self.buffers[name] = Buffer(values, misalign)
        setattr(self.tensors, name, self.buffers[name].pointer)

    @property
    def tensors(self) -> Any:
        """What holds the addresses: the parameters, or what several operators have in common."""
        return getattr(self.params, "call", self.params)


class KernelLibrary:
    """The C interface of the kernels. With a device, buffers are copied there, guards and all."""

    def __init__(self, path: Path, device: Device | None = None) -> None:
        self._kernels = Kernels(path)
        self._device = device

    def run(
        self, function: str, call: Call, written: tuple[str, ...], *, workspace: bool = False
    ) -> None:
        """Runs one launcher; checks every guard, and that only `written` buffers changed.

        With `workspace` an attention gets the workspace it asks for, guarded as well.
        """
        if workspace:
            self._add_workspace(call)
            written = (*written, "workspace")
        before = {name: buffer.values.copy() for name, buffer in call.buffers.items()}
        status, text = self._launch(function, call)
        for name, buffer in call.buffers.items():
            buffer.assert_guards_untouched()
            if name not in written or status:
                assert buffer.values.tobytes() == before[name].tobytes(), f"{name} was written"
        if status:
            raise KernelError(text)

    def raw(self, function: str, params: Any) -> tuple[int, str]:
        """Status and message of a call whose parameters are given as they are."""
        return self._kernels.status(function, params)

    def workspace_bytes(self, params: Any) -> int:
        """What an attention of these sizes asks for."""
        return self._kernels.workspace(params)

    def _add_workspace(self, call: Call) -> None:
        """Filled with NaN, so that reading what was not written shows in the result."""
        size = self._kernels.workspace(call.params)
        if size:
            call.point("workspace", np.full(size, 0xFF, np.uint8))
            call.tensors.workspaceBytes = size

    def _launch(self, function: str, call: Call) -> tuple[int, str]:
        if self._device is None:
            return self._kernels.status(function, call.params)
        with on_device(call, self._device) as params:
            return self._kernels.status(function, params, self._device.stream)


@contextmanager
def on_device(call: Call, device: Device) -> Iterator[Any]:
    """The call's parameters with every address that of a copy on the device, at the same offset
    and alignment; at the end the copies are read back, and an error of the kernels shows there."""
    buffers = list({id(buffer): buffer for buffer in call.buffers.values()}.values())
    places: list[int] = []
    try:
        for buffer in buffers:
            places.append(device.malloc(buffer.memory.nbytes + _ALIGNMENT))
        images = [
            (buffer.memory, place + buffer.memory.ctypes.data % _ALIGNMENT)
            for buffer, place in zip(buffers, places, strict=True)
        ]
        for memory, address in images:
            device.upload(address, memory)
        yield _moved(call.params, images)
        for memory, address in images:
            device.download(memory, address)
    finally:
        for place in places:
            device.free(place)


def _moved(params: Any, images: list[tuple[NDArray[np.uint8], int]]) -> Any:
    """A copy of `params` whose addresses point into the images."""
    moved = type(params).from_buffer_copy(params)
    for name, kind in params._fields_:
        given = getattr(params, name)
        if issubclass(kind, ctypes.Structure):
            setattr(moved, name, _moved(given, images))
        elif kind is ctypes.c_void_p and given:
            setattr(moved, name, _place(name, given, images))
    return moved


def _place(name: str, given: int, images: list[tuple[NDArray[np.uint8], int]]) -> int:
    for memory, address in images:
        offset = given - memory.ctypes.data
        if 0 <= offset < memory.nbytes:
            return address + offset
    raise AssertionError(f"{name} points into no buffer of the call")
