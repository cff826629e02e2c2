"""The registry of targets against the folder, and the rules of `--engine`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import ctx_export.targets as registry
from ctx_export.build import engine
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo, Manifest
from ctx_export.core.progress import SilentProgress
from ctx_export.core.recipe import ENGINES
from ctx_export.targets import _cuda_device, tensorrt, tensorrt_rtx

FOLDER = Path(registry.__file__).parent
MANIFEST = Manifest(
    model={},
    method="none",
    scaling={},
    factor=1.0,
    max_context=8,
    max_batch=1,
    max_chunk=4,
    layers=(CacheInfo(policy="full", sinks=0, window=0, capacity=8, keys="rotated"),),
    precision="fp32",
    io=(),
    weights={},
    generator={},
)


@pytest.fixture
def machine(monkeypatch):
    """Pretend what is installed: machine({"tensorrt": reason or None, …})."""

    def pretend(reasons: dict[str, str | None]) -> None:
        real = registry.targets()
        changed = {
            name: dataclasses.replace(real[name], available=lambda reason=reason: reason)
            for name, reason in reasons.items()
        }
        monkeypatch.setattr(registry, "targets", lambda: {**real, **changed})

    return pretend


def test_names_are_the_files_of_the_folder():
    files = {p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("_")} - {"base"}
    assert set(registry.names()) == {name.replace("_", "-") for name in files}
    assert {"onnx", "tensorrt", "tensorrt-rtx"} <= set(registry.names())


def test_the_command_offers_every_engine():
    assert set(ENGINES) == set(registry.engine_options())


@pytest.mark.parametrize(
    ("trt", "rtx", "chosen"),
    [
        (None, None, "tensorrt"),
        ("no GPU", None, "tensorrt-rtx"),
        (None, "not installed", "tensorrt"),
    ],
)
def test_auto_prefers_tensorrt_then_rtx(machine, trt, rtx, chosen):
    machine({"tensorrt": trt, "tensorrt-rtx": rtx})
    target = registry.choose("auto")
    assert (target.name, target.note) == (chosen, "")


def test_auto_without_any_runtime_takes_the_graph_and_says_why(machine):
    machine({"tensorrt": "reason one", "tensorrt-rtx": "reason two"})
    target = registry.choose("auto")
    assert target.name == "onnx"
    _, lines = target.build(MANIFEST, Path("unused"), SilentProgress())
    assert lines == ["no engine was built: reason one; reason two"]


def test_none_is_the_graph_without_a_word(machine):
    machine({"tensorrt": None, "tensorrt-rtx": None})
    target = registry.choose("none")
    assert target.name == "onnx"
    assert target.build(MANIFEST, Path("unused"), SilentProgress()) == (MANIFEST, [])


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("tensorrt", "tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx", "rtx")],
)
def test_engine_asked_for_but_not_installed_names_the_extra(monkeypatch, name, module, extra):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == module else real(n, *a)
    )
    with pytest.raises(
        UserError, match=rf"--engine {name}: .*pip install 'ctx-export\[{extra}\]'"
    ):
        registry.choose(name)


def test_tensorrt_without_gpu_says_so_and_names_the_way_out(monkeypatch):
    monkeypatch.setattr(tensorrt, "missing_parts", lambda *_: None)
    monkeypatch.setattr(tensorrt, "missing_gpu", lambda: "the NVIDIA driver lists no GPU")
    with pytest.raises(UserError, match=r"driver lists no GPU.*--engine tensorrt-rtx"):
        registry.choose("tensorrt")


@pytest.mark.parametrize("name", ["onnx", "openvino", "", "TensorRT"])
def test_unknown_engine_lists_the_choices(name):
    with pytest.raises(UserError, match="choose one of auto, none, tensorrt, tensorrt-rtx"):
        registry.choose(name)


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A plugin library's path, where the package is told to look; the file is not made yet."""
    path = tmp_path / "package" / "lib" / engine.LIBRARY_NAME
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(engine, "__file__", str(tmp_path / "package" / "build" / "engine.py"))
    return path


def test_rtx_needs_the_library_and_no_gpu(monkeypatch, library):
    monkeypatch.setattr(_cuda_device, "_driver", lambda: None)
    with pytest.raises(UserError, match=r"plugin library .* has not been built: run make setup"):
        registry.choose("tensorrt-rtx")
    library.touch()
    assert registry.choose("tensorrt-rtx") is tensorrt_rtx.TARGET
    assert engine.plugin_library() == library


def test_gpu_detection_without_a_driver_gives_the_reason(monkeypatch):
    monkeypatch.setattr(_cuda_device, "_driver", lambda: None)
    assert "libcuda.so.1" in (_cuda_device.missing_gpu() or "")
    assert _cuda_device.compute_capability() is None


class FakeDriver:
    """The driver API calls that are used, answering for two GPUs of capability 9.0."""

    def __init__(self, status: int = 0, count: int = 2) -> None:
        self.status, self.count = status, count

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
        return self.status

    def cuDeviceGetCount(self, pointer) -> int:  # noqa: N802
        pointer._obj.value = self.count
        return 0

    def cuDeviceGetAttribute(self, pointer, attribute: int, device: int) -> int:  # noqa: N802
        pointer._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_compute_capability_is_the_drivers(monkeypatch):
    monkeypatch.setattr(_cuda_device, "_driver", FakeDriver)
    assert _cuda_device.missing_gpu() is None
    assert _cuda_device.compute_capability() == "9.0"


@pytest.mark.parametrize(
    ("driver", "reason"), [(FakeDriver(100), "cuInit returns 100"), (FakeDriver(0, 0), "no GPU")]
)
def test_a_driver_without_gpu_gives_its_answer(monkeypatch, driver, reason):
    monkeypatch.setattr(_cuda_device, "_driver", lambda: driver)
    assert reason in (_cuda_device.missing_gpu() or "")
    assert _cuda_device.compute_capability() is None
