"""Packages that were altered are refused with the reason, in Python and in C++ alike."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctx_export.core.errors import UserError
from ctx_export.runtime import tensorrt
from ctx_export.runtime.session import open_session
from ctx_export.targets import _cuda_device
from tests.cpp.runtime_build import program
from tests.unit.runtime import context_package, software_engine
from tests.unit.runtime.fake_gpu import FakeGpu
from tests.unit.runtime.software_engine import VERSION

RUNTIME = "tensorrt-rtx"
SCALING = {
    "theta": 1e4,
    "rotary_dim": 2,
    "parameters": {},
    "multiplier": 1.0,
    "inv_freq": [1.0],
    "layers": None,
    "length_table": None,
}


@pytest.fixture(scope="module")
def check() -> Path:
    return program("ctx_runtime_check")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an engine for a TensorRT-RTX that software plays, and a machine with it."""
    context_package.write(tmp_path)
    software_engine.add_engine(tmp_path)
    restate(tmp_path, scaling=SCALING)
    gpu = FakeGpu()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", software_engine.module(gpu))
    monkeypatch.setattr(_cuda_device, "missing_gpu", lambda: None)
    monkeypatch.setattr(tensorrt, "CudaDevice", lambda: gpu)
    return tmp_path


def restate(package: Path, **changes: Any) -> None:
    path = package / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remove(name: str) -> Callable[[Path], None]:
    return lambda package: (package / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    """Leave half of a file."""

    def change(package: Path) -> None:
        content = (package / name).read_bytes()
        (package / name).write_bytes(content[: len(content) // 2])

    return change


def state(**changes: Any) -> Callable[[Path], None]:
    return lambda package: restate(package, **changes)


def drop_key(package: Path) -> None:
    path = package / "manifest.json"
    raw = json.loads(path.read_text())
    del raw["max_chunk"]
    path.write_text(json.dumps(raw))


def other_entry(key: str, **changes: Any) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        raw = json.loads((package / "manifest.json").read_text())
        restate(package, **{key: {**raw[key], **changes}})

    return change


def other_role(package: Path) -> None:
    raw = json.loads((package / "manifest.json").read_text())
    io = [t if t["role"] != "logit_rows" else {**t, "role": "position_ids"} for t in raw["io"]]
    restate(package, io=io)


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (remove("manifest.json"), "is not a package: it has no manifest.json"),
    "half a manifest": (cut("manifest.json"), "manifest.json cannot be read: "),
    "a later format": (state(format_version=2), "manifest.json has format version 2, this "),
    "a missing entry": (drop_key, "manifest.json is not a valid manifest: "),
    "layers of text": (state(layers=["x"]), "manifest.json is not a valid manifest: "),
    "no inputs": (state(io=[]), "no input or output of role "),
    "another contract": (other_role, "sessions need the native contract"),
    "no engine file": (remove("model.engine"), "has no model.engine: export the package again"),
    "no engine": (state(engine=None), "the package has no engine: export it with --engine "),
    "an engine of another runtime": (
        other_entry("engine", runtime="tensorrt"),
        "the package has an engine for tensorrt: export it with --engine tensorrt-rtx",
    ),
    "an engine of another version": (
        other_entry("engine", version="0.9"),
        f"the engine was built by tensorrt-rtx 0.9, installed is {VERSION}: export the package",
    ),
    "no plugin library": (
        remove("libctx_plugins.so"),
        "libctx_plugins.so cannot be read: No such file or directory; export the package again",
    ),
    "half a plugin library": (
        cut("libctx_plugins.so"),
        "libctx_plugins.so is not the one that the package was exported with: its SHA-256 is ",
    ),
    "another digest": (
        other_entry("plugins", sha256="0" * 64),
        f"the manifest says {'0' * 64}; export the package again",
    ),
    "a plugin library elsewhere": (
        other_entry("plugins", file="../libctx_plugins.so"),
        "the plugin library ../libctx_plugins.so lies outside of the package: export it again",
    ),
}


def run(check: Path, package: Path, batch: int = 1) -> subprocess.CompletedProcess[str]:
    command = [check, package, RUNTIME, VERSION, str(batch)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_package_as_it_was_exported_is_opened(check: Path, package: Path) -> None:
    assert run(check, package).returncode == 0
    open_session(package, RUNTIME).close()


@pytest.mark.parametrize("name", REFUSALS)
def test_an_altered_package_is_refused(check: Path, package: Path, name: str) -> None:
    change, reason = REFUSALS[name]
    change(package)
    with pytest.raises(UserError) as refused:
        open_session(package, RUNTIME)
    assert reason in str(refused.value)
    answer = run(check, package)
    assert answer.returncode == 1
    assert reason in answer.stdout


def test_more_sequences_than_the_engine_takes_are_refused(check: Path, package: Path) -> None:
    reason = "batch is 99, the engine takes at most "
    with pytest.raises(UserError, match=reason):
        open_session(package, RUNTIME, batch=99)
    assert reason in run(check, package, batch=99).stdout


def test_an_empty_engine_is_refused(check: Path, package: Path) -> None:
    (package / "model.engine").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.engine cannot be loaded"):
        open_session(package, RUNTIME)
    assert "model.engine is empty: export the package again" in run(check, package).stdout
