"""Builds the CMake targets that the host executes, once, where they are not up to date."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "host"
FILES = {
    "ctx_kernels_host": "libctx_kernels_host.so",
    "ctx_plugin_shells_test": "ctx_plugin_shells_test",
}


def _tool(name: str) -> str:
    """The environment's own cmake and ninja come first; PATH may not hold them."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or name


def build(target: str) -> Path:
    """The target's file. A failed build fails the test with the compiler's messages."""
    BUILD.mkdir(parents=True, exist_ok=True)
    configure = [_tool("cmake"), "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"]
    options = [f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", "-DCTX_BUILD_CUDA=OFF"]
    commands = [[_tool("cmake"), "--build", str(BUILD), "--target", target, "-j2"]]
    with (BUILD / ".lock").open("w") as lock:  # pytest-xdist workers build once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (BUILD / "build.ninja").exists():
            commands.insert(0, [*configure, *options])
        for command in commands:
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                pytest.fail(f"building {target}: {run.stdout}{run.stderr}")
    return BUILD / "plugins" / "host" / FILES[target]
