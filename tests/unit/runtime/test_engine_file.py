"""Loading engines: refusals and their messages, with the real TensorRT-RTX where it needs no GPU.

Without a GPU its Runtime can be made, loads plugin libraries and reads the head of an engine's
file; only an intact engine needs the GPU.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ctx_export.build.engine import plugin_library
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.runtime import tensorrt
from ctx_export.runtime.engine_file import load_engine
from ctx_export.runtime.session import open_session
from ctx_export.targets import _cuda_device
from tests.unit.runtime import context_package, software_engine
from tests.unit.runtime.fake_gpu import FakeGpu
from tests.unit.runtime.software_engine import VERSION

Change = Callable[[Path], None]


def restate(directory: Path, **changes: Any) -> Manifest:
    manifest = replace(Manifest.load(directory), **changes)
    manifest.save(directory)
    return manifest


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with an engine for a TensorRT-RTX that software plays."""
    context_package.write(tmp_path)
    software_engine.add_engine(tmp_path)
    return tmp_path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A machine with that runtime and a GPU."""
    gpu = FakeGpu()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", software_engine.module(gpu))
    monkeypatch.setattr(_cuda_device, "missing_gpu", lambda: None)
    monkeypatch.setattr(tensorrt, "CudaDevice", lambda: gpu)
    return gpu


def refusal(package: Path, backend: str = "tensorrt-rtx") -> str:
    with pytest.raises(UserError) as caught:
        open_session(package, backend)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_package_opens_as_it_is(package: Path, machine: FakeGpu) -> None:
    with open_session(package, "tensorrt-rtx") as session:
        assert session.feed([1, 2]).shape == (1, 2, context_package.VOCAB)
    machine.check_released()


def test_a_package_without_an_engine(package: Path, machine: FakeGpu) -> None:
    restate(package, engine=None)
    assert refusal(package) == (
        "the package has no engine: export it with --engine tensorrt-rtx, or open it with backend "
        "ort"
    )


def test_an_engine_of_the_other_runtime(package: Path, machine: FakeGpu) -> None:
    assert refusal(package, "tensorrt") == (
        "the package has an engine for tensorrt-rtx: export it with --engine tensorrt, or open it "
        "with backend tensorrt-rtx"
    )


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [("tensorrt-rtx", "tensorrt_rtx", "rtx"), ("tensorrt", "tensorrt", "tensorrt")],
)
def test_a_runtime_that_is_not_installed(
    package: Path, monkeypatch: pytest.MonkeyPatch, backend: str, module: str, extra: str
) -> None:
    software_engine.add_engine(package, backend)
    monkeypatch.setitem(sys.modules, module, None)
    assert refusal(package, backend) == (
        f"backend {backend} is not installed: pip install 'ctx-export[{extra}]', or open the "
        "package with backend ort"
    )


def test_a_runtime_without_its_libraries(
    package: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("site")
    (place / "tensorrt_rtx.py").write_text("import ctypes; ctypes.CDLL('libnvinfer_none.so')")
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    monkeypatch.syspath_prepend(place)
    message = refusal(package)
    assert message.startswith("backend tensorrt-rtx cannot be loaded: libnvinfer_none.so: ")
    assert message.endswith("; install tensorrt_rtx again, or open the package with backend ort")


def test_an_engine_of_another_version(package: Path, machine: FakeGpu) -> None:
    manifest = Manifest.load(package)
    assert manifest.engine is not None
    restate(package, engine={**manifest.engine, "version": "1.0"})
    assert refusal(package) == (
        f"the engine was built by tensorrt-rtx 1.0, installed is {VERSION}: export the package "
        "again, or install 1.0"
    )


def test_a_machine_without_a_gpu(
    package: Path, machine: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda_device, "missing_gpu", lambda: "this machine has no NVIDIA driver")
    assert refusal(package) == (
        "backend tensorrt-rtx needs a GPU and this machine has no NVIDIA driver: use backend ort"
    )


def missing_engine(package: Path) -> None:
    (package / "model.engine").unlink()


def empty_engine(package: Path) -> None:
    (package / "model.engine").write_bytes(b"")


def damaged_engine(package: Path) -> None:
    (package / "model.engine").write_bytes(b"damaged")


def missing_library(package: Path) -> None:
    (package / "libctx_plugins.so").unlink()


def altered_library(package: Path) -> None:
    with (package / "libctx_plugins.so").open("ab") as file:
        file.write(b"!")


def unloadable_library(package: Path) -> None:
    altered_library(package)
    digest = hashlib.sha256((package / "libctx_plugins.so").read_bytes()).hexdigest()
    restate(package, plugins={"file": "libctx_plugins.so", "sha256": digest})


def library_elsewhere(package: Path) -> None:
    restate(package, plugins={"file": "../libctx_plugins.so", "sha256": ""})


def library_unstated(package: Path) -> None:
    restate(package, plugins={"file": "libctx_plugins.so"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_engine, "{package} has no model.engine: export the package again"),
        (
            empty_engine,
            "{package}/model.engine cannot be loaded: no reason was given; export the package "
            "again for this GPU",
        ),
        (
            damaged_engine,
            "{package}/model.engine cannot be loaded: magicTag failed; export the package again "
            "for this GPU",
        ),
        (
            missing_library,
            "the plugin library {package}/libctx_plugins.so cannot be read: No such file or "
            "directory; export the package again",
        ),
        (
            altered_library,
            "the plugin library {package}/libctx_plugins.so is not the one that the package was "
            "exported with: its SHA-256 is {found}, the manifest says {stated}; export the "
            "package again",
        ),
        (
            library_unstated,
            "the plugin library {package}/libctx_plugins.so is not the one that the package was "
            "exported with: its SHA-256 is {found}, the manifest says None; export the package "
            "again",
        ),
        (
            unloadable_library,
            "the plugin library {package}/libctx_plugins.so cannot be loaded: Unable to load "
            "library {package}/libctx_plugins.so; export the package again",
        ),
        (
            library_elsewhere,
            "the plugin library ../libctx_plugins.so lies outside of the package: export it again",
        ),
    ],
)
def test_a_package_that_is_damaged(
    package: Path, machine: FakeGpu, change: Change, message: str
) -> None:
    stated = hashlib.sha256(software_engine.LIBRARY).hexdigest()
    change(package)
    library = package / "libctx_plugins.so"
    found = hashlib.sha256(library.read_bytes()).hexdigest() if library.exists() else ""
    assert refusal(package) == message.format(package=package, found=found, stated=stated)
    assert machine.allocations == 0


def test_an_engine_without_plugins_needs_no_library(package: Path, machine: FakeGpu) -> None:
    restate(package, plugins=None)
    missing_library(package)
    open_session(package, "tensorrt-rtx").close()


@pytest.fixture
def rtx() -> ModuleType:
    import tensorrt_rtx

    module: ModuleType = tensorrt_rtx
    return module


@pytest.fixture
def real_library(package: Path) -> Manifest:
    """The package with the real plugin library and an engine that is none."""
    (package / "model.engine").write_bytes(b"no engine " * 100)
    shutil.copyfile(plugin_library(), package / "libctx_plugins.so")
    digest = hashlib.sha256((package / "libctx_plugins.so").read_bytes()).hexdigest()
    return restate(package, plugins={"file": "libctx_plugins.so", "sha256": digest})


def test_tensorrt_rtx_loads_the_plugins_and_says_why_an_engine_is_none(
    package: Path, real_library: Manifest, rtx: ModuleType
) -> None:
    for _ in range(2):  # each session's runtime has plugins of its own
        with pytest.raises(UserError, match=r"model\.engine cannot be loaded: .*magicTag"):
            load_engine(rtx, package, real_library)


def test_tensorrt_rtx_says_why_a_library_cannot_be_loaded(package: Path, rtx: ModuleType) -> None:
    with pytest.raises(UserError, match=r"libctx_plugins\.so cannot be loaded: .*Unable to load"):
        load_engine(rtx, package, Manifest.load(package))


def test_this_machine_opens_the_engine_or_says_why_not(
    package: Path, real_library: Manifest, rtx: ModuleType
) -> None:
    """Nothing is replaced; a machine with a GPU refuses the engine too."""
    assert real_library.engine is not None
    restate(package, engine={**real_library.engine, "version": rtx.__version__})
    assert any(why in refusal(package) for why in ("needs a GPU", "magicTag"))
