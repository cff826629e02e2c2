"""ctypes binding of libctx_kernels_host.so: kernels run by the host, on guarded buffers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, tuple[int, np.dtype[Any]]] = {
    "float32": (0, np.dtype(np.float32)),
    "float16": (1, np.dtype(np.float16)),
    "bfloat16": (2, np.dtype(ml_dtypes.bfloat16)),
}
GUARD_BYTES = 256
GUARD = 0xA5

_POINTERS = {
    "frequencies": ("ropeLength", "tables", "scalars", "inverseFrequency", "multiplier"),
    "rotary": ("x", "positions", "inverseFrequency", "multiplier", "y"),
    "attention": (
        *("query", "key", "value", "pastKey", "pastValue", "seen", "newTokens", "sinkQuery"),
        *("inverseFrequency", "multiplier", "headSink", "output", "presentKey", "presentValue"),
    ),
}


def _struct(name: str, pointers: tuple[str, ...], fields: list[tuple[str, Any]]) -> Any:
    layout = [("size", ctypes.c_uint64), *((p, ctypes.c_void_p) for p in pointers), *fields]
    return type(name, (ctypes.Structure,), {"_fields_": layout})


def _integers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int64) for name in names]


FrequenciesParams = _struct(
    "CtxRotaryFrequenciesParams", _POINTERS["frequencies"], _integers("batch", "pairs")
)
RotaryParams = _struct(
    "CtxScaledRotaryEmbeddingParams",
    _POINTERS["rotary"],
    [
        *_integers("batch", "heads", "rows", "headDim", "rotaryDim"),
        *_integers("frequencyBatch", "multiplierBatch"),
        ("interleaved", ctypes.c_int32),
        ("dataType", ctypes.c_int32),
    ],
)
AttentionParams = _struct(
    "CtxSinkWindowAttentionParams",
    _POINTERS["attention"],
    [
        *_integers("batch", "queryHeads", "kvHeads", "rows", "capacity", "headDim"),
        *_integers("sinks", "window", "rotaryDim", "frequencyBatch", "multiplierBatch"),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("bounded", ctypes.c_int32),
        ("interleaved", ctypes.c_int32),
        ("dataType", ctypes.c_int32),
        ("cacheType", ctypes.c_int32),
        ("rotation", ctypes.c_int32),
        ("sinkPosition", ctypes.c_int64),
        ("keyScale", ctypes.c_void_p),
        ("valueScale", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspaceBytes", ctypes.c_uint64),
    ],
)


class Buffer:
    """An array with guard bytes on both sides, 16-byte aligned, as device memory is."""

    def __init__(self, values: NDArray[Any], misalign: int = 0) -> None:
        self.shape, self.dtype = values.shape, values.dtype
        self._memory = np.full(values.nbytes + 2 * GUARD_BYTES + 64, GUARD, np.uint8)
        self._begin = GUARD_BYTES + misalign - (self._memory.ctypes.data + GUARD_BYTES) % -64
        self._end = self._begin + values.nbytes
        self._memory[self._begin : self._end] = np.ascontiguousarray(values).view(np.uint8).ravel()

    @property
    def pointer(self) -> int:
        return self._memory.ctypes.data + self._begin

    @property
    def values(self) -> NDArray[Any]:
        return self._memory[self._begin : self._end].view(self.dtype).reshape(self.shape)

    def assert_guards_untouched(self) -> None:
        assert (self._memory[: self._begin] == GUARD).all(), "written before the buffer"
        assert (self._memory[self._end :] == GUARD).all(), "written past the buffer"


@dataclass
class Call:
    """Buffers and scalars of one call; after it, inputs and guards must be as before."""

    params: Any
    buffers: dict[str, Buffer] = field(default_factory=dict)

    def point(self, name: str, values: NDArray[Any] | None, misalign: int = 0) -> None:
        if values is None:
            return
        self.buffers[name] = Buffer(values, misalign)
        setattr(self.params, name, self.buffers[name].pointer)


class KernelError(RuntimeError):
    """A status other than success, with the library's message."""


class HostLibrary:
    """The C interface of the kernels."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.ctxLastErrorMessage.restype = ctypes.c_char_p

    def run(self, function: str, call: Call, written: tuple[str, ...]) -> None:
        """Runs one launcher; checks every guard, and that only `written` buffers changed."""
        before = {name: buffer.values.copy() for name, buffer in call.buffers.items()}
        status = getattr(self._library, function)(ctypes.byref(call.params), None)
        for name, buffer in call.buffers.items():
            buffer.assert_guards_untouched()
            if name not in written or status:
                assert buffer.values.tobytes() == before[name].tobytes(), f"{name} was written"
        if status:
            raise KernelError(self._library.ctxLastErrorMessage().decode())

    def raw(self, function: str, params: Any) -> tuple[int, str]:
        """Status and message of a call whose parameters are given as they are."""
        status = getattr(self._library, function)(ctypes.byref(params), None)
        return status, self._library.ctxLastErrorMessage().decode()
