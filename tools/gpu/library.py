"""The plugin library that is measured: built for the GPU at hand where there is a compiler."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.gpu.machine import ROOT
from tools.gpu.processes import run_limited

BUILD = ROOT / "build" / "gpu"
INSTALLED = ROOT / "exporter" / "ctx_export" / "lib" / "libctx_plugins.so"
_TOOLKIT = Path("/usr/local/cuda/bin")


class NoLibrary(Exception):
    """There is no library to measure; the text says why and what to do."""


class BuildFailed(Exception):
    """The compiler refuses the sources; the text is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A libctx_plugins.so and where it comes from."""

    path: Path
    origin: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def find_library(given: Path | None, architecture: str, seconds: float) -> Library:
    """`given`; else one built in build/gpu for `architecture`, by a build that does nothing where
    it is up to date; without nvcc the one that `make setup` installs."""
    if given is not None:
        if not given.is_file():
            raise NoLibrary(f"--library is {given}, which is no file: name a libctx_plugins.so")
        return Library(path=given.resolve(), origin=f"given: {given.name}")
    nvcc = tool("nvcc")
    if nvcc is not None:
        return _built(nvcc, architecture, seconds)
    if INSTALLED.is_file():
        return Library(path=INSTALLED, origin="as make setup installed it; no nvcc here")
    raise NoLibrary(
        "there is neither nvcc nor a built library: install a CUDA toolkit, or name a "
        "libctx_plugins.so with --library"
    )


def tool(name: str) -> str | None:
    """This environment's own program, else the one on PATH, else the CUDA toolkit's."""
    places = (str(Path(sys.executable).parent), None, str(_TOOLKIT))
    return next((found for place in places if (found := shutil.which(name, path=place))), None)


def build_commands(nvcc: str, architecture: str) -> list[list[str]]:
    """Configure, which is quick where it has been done, and build."""
    cmake = tool("cmake")
    if cmake is None:
        raise NoLibrary("cmake is not installed: pip install cmake, or give --library")
    configure = [cmake, "-S", str(ROOT), "-B", str(BUILD)]
    ninja = tool("ninja")
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCTX_BUILD_CUDA=ON",
        f"-DCTX_CUDA_ARCHITECTURES={architecture}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
    ]
    return [configure, [cmake, "--build", str(BUILD), "--target", "ctx_plugins", "--parallel"]]


def _built(nvcc: str, architecture: str, seconds: float) -> Library:
    started = time.monotonic()
    for command in build_commands(nvcc, architecture):
        finished = run_limited(command, seconds - (time.monotonic() - started))
        if finished.status is None:
            raise NoLibrary(
                f"building is {finished.failure}: build the library beforehand and name it with "
                "--library"
            )
        if finished.status:
            raise BuildFailed(f"the build fails:\n{finished.output[-3000:]}")
    path = BUILD / "plugins" / "libctx_plugins.so"
    release = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    version = release.stdout.strip().splitlines()[-1] if release.stdout else "nvcc"
    return Library(path=path, origin=f"built for sm_{architecture} by {version}")
