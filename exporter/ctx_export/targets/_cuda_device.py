"""What the CUDA driver says about this machine's GPU, asked without any CUDA package."""

from __future__ import annotations

import ctypes

_SUCCESS = 0
# CUdevice_attribute values of the driver API.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


def missing_gpu() -> str | None:
    """Why no GPU can be used, or None where there is one."""
    driver = _driver()
    if driver is None:
        return "this machine has no NVIDIA driver (libcuda.so.1)"
    status = int(driver.cuInit(0))
    if status != _SUCCESS:
        return f"the NVIDIA driver finds no usable GPU (cuInit returns {status})"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != _SUCCESS or count.value < 1:
        return "the NVIDIA driver lists no GPU"
    return None


def compute_capability(device: int = 0) -> str | None:
    """Compute capability of a GPU such as "9.0", or None where there is none."""
    driver = _driver()
    if driver is None or missing_gpu() is not None:
        return None
    parts = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != _SUCCESS:
            return None
        parts.append(str(value.value))
    return ".".join(parts)


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
