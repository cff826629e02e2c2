"""The few CUDA runtime calls that engine sessions need, on one stream."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError

_HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 1, 2, 3  # cudaMemcpyKind


class Device(Protocol):
    """GPU memory by address. Copies are ordered on `stream`; those to the host have happened when
    the call returns."""

    stream: int

    def malloc(self, nbytes: int) -> int:
        """Raises UserError where the GPU has not that much memory."""

    def free(self, address: int) -> None: ...

    def zero(self, address: int, nbytes: int) -> None: ...

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """A contiguous array's bytes to the device."""

    def download(self, array: NDArray[Any], address: int) -> None: ...

    def copy(self, target: int, source: int, nbytes: int) -> None: ...

    def copy_rows(
        self,
        target: tuple[int, int],
        source: tuple[int, int] | tuple[NDArray[Any], int],
        width: int,
        height: int,
    ) -> None:
        """`height` rows of `width` bytes; each side is (address or host array, bytes from one row
        to the next)."""

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


class CudaDevice:
    """`Device` over the CUDA runtime that polygraphy finds."""

    def __init__(self) -> None:
        try:
            from polygraphy import cuda

            self._cuda: Any = cuda.wrapper()
            self._runtime: Any = self._cuda.handle
            self.stream: int = self._cuda.create_stream()
        except ImportError:
            raise UserError("polygraphy is not installed: pip install polygraphy") from None
        except Exception as error:  # polygraphy's exceptions share no public base class
            raise UserError(
                f"the CUDA runtime cannot be used: {_first_line(error)}; install CUDA or "
                "pip install nvidia-cuda-runtime"
            ) from None

    def malloc(self, nbytes: int) -> int:
        try:
            address: int = self._cuda.malloc(nbytes)
        except Exception as error:
            raise UserError(
                f"the GPU has no {nbytes / 2**20:.0f} MiB left: {_first_line(error)}; use fewer "
                "tokens or a smaller batch"
            ) from None
        return address

    def free(self, address: int) -> None:
        self._cuda.free(address)

    def zero(self, address: int, nbytes: int) -> None:
        self._check(
            self._runtime.cudaMemsetAsync(
                _pointer(address), 0, _size(nbytes), _pointer(self.stream)
            )
        )

    def upload(self, address: int, array: NDArray[Any]) -> None:
        self._cuda.memcpy(address, array.ctypes.data, array.nbytes, _HOST_TO_DEVICE, self.stream)
        # The array may be gone before the copy begins.
        self.synchronize()

    def download(self, array: NDArray[Any], address: int) -> None:
        self._cuda.memcpy(array.ctypes.data, address, array.nbytes, _DEVICE_TO_HOST, self.stream)
        self.synchronize()

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self._cuda.memcpy(target, source, nbytes, _DEVICE_TO_DEVICE, self.stream)

    def copy_rows(
        self,
        target: tuple[int, int],
        source: tuple[int, int] | tuple[NDArray[Any], int],
        width: int,
        height: int,
    ) -> None:
        start, pitch = source
        on_host = isinstance(start, np.ndarray)
        address = start.ctypes.data if isinstance(start, np.ndarray) else start
        self._check(
            self._runtime.cudaMemcpy2DAsync(
                _pointer(target[0]),
                _size(target[1]),
                _pointer(address),
                _size(pitch),
                _size(width),
                _size(height),
                _HOST_TO_DEVICE if on_host else _DEVICE_TO_DEVICE,
                _pointer(self.stream),
            )
        )
        if on_host:
            self.synchronize()

    def synchronize(self) -> None:
        self._cuda.stream_synchronize(self.stream)

    def close(self) -> None:
        self._cuda.destroy_stream(self.stream)

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"a CUDA call failed with error {status}")


def _pointer(address: int) -> Any:
    import ctypes

    return ctypes.c_void_p(address)


def _size(nbytes: int) -> Any:
    import ctypes

    return ctypes.c_size_t(nbytes)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
