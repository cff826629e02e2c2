"""The C++ runtime and its test programs, built without CUDA."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.kernels.host_build import ROOT, build_in

BUILD = ROOT / "build" / "cpp"
PROGRAMS = BUILD / "plugins" / "runtime" / "tests"


def build_runtime(*targets: str) -> None:
    """Build `targets`, with the JSON headers of the PyPI package nlohmann-json."""
    found = importlib.util.find_spec("nlohmann_json")
    if found is None or not found.submodule_search_locations:
        pytest.skip("nlohmann_json's headers are not installed: pip install nlohmann-json")
    headers = Path(found.submodule_search_locations[0]) / "include"
    options = ["-DCTX_BUILD_RUNTIME=ON", f"-DCTX_JSON_INCLUDE_DIR={headers}"]
    build_in(BUILD, *targets, options=options)


def program(name: str) -> Path:
    """A test program, up to date."""
    build_runtime(name)
    return PROGRAMS / name
