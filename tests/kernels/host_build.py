"""Builds the CMake targets that the host executes, once, where they are not up to date."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "host"
FILES = {
    "ctx_kernels_host": "libctx_kernels_host.so",
    "ctx_plugin_shells_test": "ctx_plugin_shells_test",
}


def tool(name: str) -> str:
    """The environment's own cmake and ninja come first; PATH may not hold them."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or name


def build(target: str) -> Path:
    """The target's file. A failed build fails the test with the compiler's messages."""
    build_in(BUILD, target)
    return BUILD / "plugins" / "host" / FILES[target]


def build_in(directory: Path, *targets: str, options: Sequence[str] = ()) -> None:
    """Build `targets` in `directory`; `options` are CMake's, where it was not configured yet."""
    directory.mkdir(parents=True, exist_ok=True)
    configure = [tool("cmake"), "-S", str(ROOT), "-B", str(directory), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DCTX_BUILD_CUDA=OFF", *options]
    commands = [[tool("cmake"), "--build", str(directory), "--target", *targets, "-j2"]]
    with (directory / ".lock").open("w") as lock:  # pytest-xdist workers build once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "build.ninja").exists():
            commands.insert(0, configure)
        for command in commands:
            run_tool(command)


def run_tool(command: Sequence[str]) -> None:
    """Run `command`; its failure is the test's."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.fail(f"{' '.join(command)}: {run.stdout}{run.stderr}")
