"""The few CUDA runtime calls that engine sessions need, on one stream."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ctx_export.core.errors import UserError

Rows = tuple[int, int]  # address of the first row, bytes from one row to the next

_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3  # cudaMemcpyKind
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_PLACE, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_CALLS: dict[str, tuple[Any, ...]] = {
    "cudaStreamCreate": (ctypes.POINTER(_PLACE),),
    "cudaStreamSynchronize": (_PLACE,),
    "cudaStreamDestroy": (_PLACE,),
    "cudaMalloc": (ctypes.POINTER(_PLACE), _SIZE),
    "cudaFree": (_PLACE,),
    "cudaMemsetAsync": (_PLACE, _INT, _SIZE, _PLACE),
    "cudaMemset2DAsync": (_PLACE, _SIZE, _INT, _SIZE, _SIZE, _PLACE),
    "cudaMemcpyAsync": (_PLACE, _PLACE, _SIZE, _INT, _PLACE),
    "cudaMemcpy2DAsync": (_PLACE, _SIZE, _PLACE, _SIZE, _SIZE, _SIZE, _INT, _PLACE),
    "cudaGetLastError": (),
}


class Device(Protocol):
    """GPU memory by address. What is asked for happens in order on `stream`, and may not have
    happened when a call returns, except for `download`, `free` and `synchronize`."""

    stream: int

    def malloc(self, nbytes: int) -> int:
        """Raises UserError where the GPU has not that much memory."""

    def free(self, address: int) -> None:
        """Give memory back that nothing under way uses any more."""

    def zero(self, address: int, nbytes: int) -> None: ...

    def zero_rows(self, target: Rows, width: int, height: int) -> None:
        """Zeros to `height` rows of `width` bytes."""

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """A contiguous array's bytes to the device; the array must stay as it is until the device
        is synchronized."""

    def upload_rows(self, target: Rows, array: NDArray[Any], height: int) -> None:
        """`upload` of `height` rows, which lie in the array one after the other."""

    def download(self, array: NDArray[Any], address: int) -> None:
        """Fill a contiguous array; synchronizes."""

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int) -> None:
        """`height` rows of `width` bytes from device to device; the two must not overlap."""

    def synchronize(self) -> None: ...

    def close(self) -> None:
        """Release the stream; memory must have been freed."""


class CudaDevice:
    """`Device` over the CUDA runtime library, on the current GPU.

    `libraries` are the names or paths to try. Raises UserError where none can be loaded, or where
    there is no driver or GPU that it can use.
    """

    def __init__(self, libraries: Iterable[str] | None = None) -> None:
        self._runtime = _load(_libraries() if libraries is None else libraries)
        stream = _PLACE()
        try:
            self._call("cudaStreamCreate", ctypes.byref(stream))
        except RuntimeError as error:
            raise UserError(
                f"the CUDA runtime cannot be used: {error}; update the GPU's driver, or use "
                "backend ort"
            ) from None
        self.stream = int(stream.value or 0)

    def malloc(self, nbytes: int) -> int:
        place = _PLACE()
        status = self._runtime.cudaMalloc(ctypes.byref(place), nbytes)
        if status == _OUT_OF_MEMORY:
            self._runtime.cudaGetLastError()  # handled: others in the process need not see it
            raise UserError(
                f"the GPU has no {nbytes / 2**20:.0f} MiB left: use fewer tokens or a smaller "
                "batch"
            )
        self._check("cudaMalloc", status)
        return int(place.value or 0)

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def zero(self, address: int, nbytes: int) -> None:
        self._call("cudaMemsetAsync", address, 0, nbytes, self.stream)

    def zero_rows(self, target: Rows, width: int, height: int) -> None:
        self._call("cudaMemset2DAsync", *target, 0, width, height, self.stream)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        self._copy(address, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE)

    def upload_rows(self, target: Rows, array: NDArray[Any], height: int) -> None:
        width = array.nbytes // height
        self._copy_rows(target, (array.ctypes.data, width), width, height, _HOST_TO_DEVICE)

    def download(self, array: NDArray[Any], address: int) -> None:
        self._copy(array.ctypes.data, address, array.nbytes, _DEVICE_TO_HOST)
        self.synchronize()

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int) -> None:
        self._copy_rows(target, source, width, height, _DEVICE_TO_DEVICE)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        self._call("cudaStreamDestroy", self.stream)

    def _copy(self, target: int, source: int, nbytes: int, kind: int) -> None:
        self._call("cudaMemcpyAsync", target, source, nbytes, kind, self.stream)

    def _copy_rows(self, target: Rows, source: Rows, width: int, height: int, kind: int) -> None:
        self._call("cudaMemcpy2DAsync", *target, *source, width, height, kind, self.stream)

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._runtime, name)(*arguments))

    def _check(self, name: str, status: int) -> None:
        if status != 0:
            self._runtime.cudaGetLastError()
            text = self._runtime.cudaGetErrorString(status).decode()
            raise RuntimeError(f"{name} failed: {text} (error {status})")


def _load(libraries: Iterable[str]) -> ctypes.CDLL:
    """The first of `libraries` that can be loaded, its functions declared."""
    for name in libraries:
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        for call, arguments in _CALLS.items():
            getattr(runtime, call).argtypes = arguments
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
        return runtime
    raise UserError(
        "the CUDA runtime (libcudart.so) is not installed: pip install nvidia-cuda-runtime, or "
        "use backend ort"
    )


def _libraries() -> Iterator[str]:
    """Where a CUDA runtime may be: the loader's path, NVIDIA's wheels, the toolkit's folder."""
    yield from ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
    wheels = find_spec("nvidia")
    for folder in (wheels.submodule_search_locations or []) if wheels else []:
        yield from map(str, sorted(Path(folder).glob("*/lib/libcudart.so.*"), reverse=True))
    yield "/usr/local/cuda/lib64/libcudart.so"
