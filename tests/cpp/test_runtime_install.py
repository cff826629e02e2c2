"""The runtime alone, installed, in a project of somebody else's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.cpp.runtime_build import BUILD, build_runtime
from tests.kernels.host_build import run_tool, tool
from tests.unit.runtime import fakes

CONSUMER = Path(__file__).parent / "consumer"


def test_an_installed_runtime_is_found_and_used(tmp_path: Path) -> None:
    """In C++ and in C, with nothing of the plugin library beside it."""
    build_runtime("ctx_runtime")
    prefix, build, package = (tmp_path / name for name in ("prefix", "build", "package"))
    component = ["--component", "ctx_runtime", "--prefix", str(prefix)]
    run_tool([tool("cmake"), "--install", str(BUILD), *component])
    installed = {path.name for path in prefix.rglob("*") if path.is_file()}
    assert {"libctx_runtime.so", "ctx_runtime.h", "ctx_exportConfig.cmake"} <= installed
    assert not any("plugins" in name or "kernels" in name for name in installed)
    options = [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    run_tool([tool("cmake"), "-S", str(CONSUMER), "-B", str(build), "-G", "Ninja", *options])
    run_tool([tool("cmake"), "--build", str(build)])
    package.mkdir()
    fakes.manifest().save(package)
    path = package / "manifest.json"
    scaling = {"theta": 1e4, "rotary_dim": 0, "multiplier": 1.0, "inv_freq": []}
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling": scaling}))
    run = subprocess.run(
        [build / "consumer", package], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.splitlines() == [
        "none: 1 layers, 1000 slots",
        "this engine runs nothing",
        "status 7: this engine runs nothing",
    ]
