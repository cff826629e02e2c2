"""The kernels as the host executes them and, on a machine with a GPU, as the GPU does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ctx_export.runtime.cuda import CudaDevice
from tests.kernels.device_library import device_library
from tests.kernels.host_build import build
from tests.kernels.kernel_library import KernelLibrary


@pytest.fixture(scope="session", params=["host", pytest.param("device", marks=pytest.mark.gpu)])
def library(request: pytest.FixtureRequest) -> Iterator[KernelLibrary]:
    if request.param == "host":
        yield KernelLibrary(build("ctx_kernels_host"))
        return
    path = device_library(request.config.getoption("--plugin-library"))
    device = CudaDevice()
    try:
        yield KernelLibrary(path, device)
    finally:
        device.close()
