"""The names of `kernel_library` under which the kernels' tests import them."""

from tests.kernels.kernel_library import (
    DTYPES,
    AttentionParams,
    Buffer,
    Call,
    FrequenciesParams,
    KernelError,
    RotaryParams,
)
from tests.kernels.kernel_library import KernelLibrary as HostLibrary

__all__ = [
    "DTYPES",
    "AttentionParams",
    "Buffer",
    "Call",
    "FrequenciesParams",
    "HostLibrary",
    "KernelError",
    "RotaryParams",
]
