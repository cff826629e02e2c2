"""Builds the kernels for the host, once, where they are not up to date."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.host_library import HostLibrary

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "host"


def _tool(name: str) -> str:
    """The environment's own cmake and ninja come first; PATH may not hold them."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or name


def _build() -> None:
    if not (BUILD / "build.ninja").exists():
        configure = [_tool("cmake"), "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"]
        options = [f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", "-DCTX_BUILD_CUDA=OFF"]
        subprocess.run([*configure, *options], check=True, capture_output=True, text=True)
    build = [_tool("cmake"), "--build", str(BUILD), "--target", "ctx_kernels_host", "-j2"]
    subprocess.run(build, check=True, capture_output=True, text=True)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> HostLibrary:
    import fcntl

    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:  # pytest-xdist workers build once
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _build()
        except subprocess.CalledProcessError as error:
            pytest.fail(f"building ctx_kernels_host: {error.stdout}{error.stderr}")
    return HostLibrary(BUILD / "plugins" / "host" / "libctx_kernels_host.so")
