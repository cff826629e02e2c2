"""The kernels as the host executes them."""

from __future__ import annotations

import pytest

from tests.kernels.host_build import build
from tests.kernels.host_library import HostLibrary


@pytest.fixture(scope="session")
def library() -> HostLibrary:
    return HostLibrary(build("ctx_kernels_host"))
