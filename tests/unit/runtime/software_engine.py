"""TensorRT's runtime API over onnxruntime and `FakeGpu`: what sessions use of it, with its rules.

`model.engine` holds the path of a package, whose model.onnx is run on the bytes found at the bound
addresses, when the fake GPU gets to it.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort

from ctx_export.build.engine_network import _described, _inputs
from ctx_export.build.engine_profiles import PROFILE_NAMES, Limits, profiles
from ctx_export.core.manifest import Manifest, TensorInfo
from ctx_export.runtime.cache_codec import NUMPY_TYPES
from ctx_export.runtime.model_file import load_model
from ctx_export.runtime.twin import narrow, widen, widen_types, widened_weights
from tests.unit.runtime.fake_gpu import FakeGpu, Misuse

VERSION = "1.2.3"
LIBRARY = b"plugins"
_ALIGNMENT = 256  # bytes, of every tensor's address
_ERROR = 1


def add_engine(directory: Path, runtime: str = "tensorrt-rtx") -> Manifest:
    """What an export with an engine leaves in the package `directory`."""
    manifest = Manifest.load(directory)
    limits = Limits(
        max_batch=manifest.max_batch,
        max_chunk=manifest.max_chunk,
        capacity=manifest.cache.capacity,
    )
    (directory / "model.engine").write_text(str(directory))
    (directory / "libctx_plugins.so").write_bytes(LIBRARY)
    manifest = replace(
        manifest,
        engine={
            "file": "model.engine",
            "runtime": runtime,
            "version": VERSION,
            "profiles": _described(profiles(_inputs(manifest.io), limits)),
        },
        plugins={"file": "libctx_plugins.so", "sha256": hashlib.sha256(LIBRARY).hexdigest()},
    )
    manifest.save(directory)
    return Manifest.load(directory)


class Severity(int):
    ERROR = _ERROR


class Logger:
    """ILogger."""

    Severity = Severity

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class Registry:
    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def load_library(self, path: str) -> object | None:
        if Path(path).read_bytes() != LIBRARY:
            self._logger.log(_ERROR, f"Unable to load library {path}")
            self._logger.log(_ERROR, "what came of it")
            return None
        return object()


class Runtime:
    """`changes` are attributes to set on every engine."""

    gpu: FakeGpu
    changes: dict[str, Any]

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self.registry = Registry(logger)

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def deserialize_cuda_engine(self, data: Any) -> SoftwareEngine | None:
        directory = Path(bytes(data).decode())
        if not directory.is_dir():
            self._logger.log(_ERROR, "magicTag failed")
            self._logger.log(_ERROR, "what came of it")
            return None
        engine = SoftwareEngine(directory, self, self.gpu)
        vars(engine).update(self.changes)
        return engine

    def error(self, message: str) -> bool:
        self._logger.log(_ERROR, message)
        return False


def module(gpu: FakeGpu, **changes: Any) -> ModuleType:
    """What `import tensorrt_rtx` gives."""
    made: Any = ModuleType("tensorrt_rtx")
    made.__version__ = VERSION
    made.ILogger = Logger
    made.Runtime = type("Runtime", (Runtime,), {"gpu": gpu, "changes": changes})
    return made  # type: ignore[no-any-return]


class SoftwareEngine:
    """ICudaEngine. `runs` lists (profile name, shapes by input) of what was enqueued."""

    def __init__(self, directory: Path, runtime: Runtime, gpu: FakeGpu) -> None:
        self.manifest = Manifest.load(directory)
        self.names = [tensor.name for tensor in self.manifest.io]
        self.gpu = gpu
        self.runs: list[tuple[str, dict[str, tuple[int, ...]]]] = []
        self.refuses = False  # to enqueue
        self.contexts: list[weakref.ref[Context]] = []
        self.most_contexts = 2
        self._runtime = weakref.ref(runtime)
        self._session, self._weights = _session(directory)

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def create_execution_context(self) -> Context | None:
        if len(self.contexts) == self.most_contexts:
            self.runtime.error("no memory for activations")
            return None
        context = Context(self)
        self.contexts.append(weakref.ref(context))
        return context

    @property
    def runtime(self) -> Runtime:
        runtime = self._runtime()
        if runtime is None:
            raise Misuse("the engine outlives its runtime")
        return runtime

    def taken_profiles(self) -> set[int]:
        alive = (context() for context in self.contexts)
        return {context.profile for context in alive if context and context.profile is not None}

    def compute(self, feeds: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
        return list(self._session.run(None, feeds))


class Context:
    """IExecutionContext. A profile belongs to one context, and shapes to a profile."""

    def __init__(self, engine: SoftwareEngine) -> None:
        self._engine = weakref.ref(engine)
        self.profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    @property
    def engine(self) -> SoftwareEngine:
        engine = self._engine()
        if engine is None:
            raise Misuse("a context outlives its engine")
        return engine

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        _check_stream(self.engine, stream)
        if not 0 <= profile < len(PROFILE_NAMES) or profile in self.engine.taken_profiles():
            return self.engine.runtime.error(f"profile {profile} is taken or does not exist")
        self.profile, self._shapes = profile, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profile is None:
            raise Misuse("a shape is set before a profile")
        ranges = (self.engine.manifest.engine or {})["profiles"][PROFILE_NAMES[self.profile]]
        if name not in ranges:
            return self.engine.runtime.error(f"{name} is no input with a profile")
        low, _, high = ranges[name]
        if not (
            type(shape) is tuple
            and len(shape) == len(low)
            and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        ):
            return self.engine.runtime.error(f"{shape} is outside of {low} to {high}")
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.names:
            return self.engine.runtime.error(f"{name} is no tensor")
        if address % _ALIGNMENT:
            raise Misuse(f"{name} is bound to {address:#x}, which is not aligned")
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        _check_stream(engine, stream)
        assert engine.runtime
        if engine.refuses:
            return engine.runtime.error("enqueue failed")
        assert self.profile is not None
        shapes = self._resolved_shapes()
        ranges = {
            tensor.name: (self._address(tensor), _nbytes(tensor, shapes[tensor.name]))
            for tensor in engine.manifest.io
        }
        _check_memory(engine.manifest, ranges)
        engine.runs.append((PROFILE_NAMES[self.profile], dict(self._shapes)))
        engine.gpu.launch(list(ranges.values()), lambda: _run(engine, shapes, ranges))
        return True

    def _address(self, tensor: TensorInfo) -> int:
        if tensor.name not in self._addresses:
            raise Misuse(f"{tensor.name} is not bound")
        return self._addresses[tensor.name]

    def _resolved_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape; a dimension of one name has one size in all inputs."""
        sizes: dict[str, int] = {}
        for tensor in _inputs(self.engine.manifest.io):
            if tensor.name not in self._shapes:
                raise Misuse(f"the shape of {tensor.name} is not set")
            for name, size in zip(tensor.shape, self._shapes[tensor.name], strict=True):
                if isinstance(name, str) and sizes.setdefault(name, size) != size:
                    raise Misuse(f"dimension {name} is {sizes[name]} and {size}")
        return {
            tensor.name: tuple(d if isinstance(d, int) else sizes[d] for d in tensor.shape)
            for tensor in self.engine.manifest.io
        }


def _check_stream(engine: SoftwareEngine, stream: int) -> None:
    if stream != engine.gpu.stream:
        raise Misuse(f"stream {stream} is not the device's")


def _nbytes(tensor: TensorInfo, shape: tuple[int, ...]) -> int:
    size = 8 if tensor.dtype == "int64" else np.dtype(NUMPY_TYPES[tensor.dtype]).itemsize
    return math.prod(shape) * size


def _check_memory(manifest: Manifest, ranges: dict[str, tuple[int, int]]) -> None:
    """Present lies where past lies, and nothing else shares memory."""
    places = {}
    for tensor in manifest.io:
        if tensor.role.startswith("present"):
            past = next(
                t
                for t in manifest.of_role(tensor.role.replace("present", "past"))
                if t.layer == tensor.layer
            )
            if ranges[tensor.name] != ranges[past.name]:
                raise Misuse(f"{tensor.name} does not lie where {past.name} lies")
        else:
            places[tensor.name] = ranges[tensor.name]
    ordered = sorted(places.values())
    for (first, size), (second, _) in pairwise(ordered):
        if first + size > second:
            raise Misuse("two tensors share memory")


def _run(
    engine: SoftwareEngine,
    shapes: dict[str, tuple[int, ...]],
    ranges: dict[str, tuple[int, int]],
) -> None:
    feeds = {}
    for tensor in _inputs(engine.manifest.io):
        kind = np.int64 if tensor.dtype == "int64" else NUMPY_TYPES[tensor.dtype]
        array = engine.gpu.view(*ranges[tensor.name]).copy().view(kind)
        array = array.reshape(shapes[tensor.name])
        feeds[tensor.name] = widen(array) if tensor.dtype == "bfloat16" else array
    names = [value.name for value in engine._session.get_outputs()]
    found = dict(zip(names, engine.compute(feeds), strict=True))
    for tensor in engine.manifest.io:
        if tensor.name in found:
            array = found[tensor.name]
            assert array.shape == shapes[tensor.name]
            stored = narrow(array) if tensor.dtype == "bfloat16" else array
            engine.gpu.view(*ranges[tensor.name])[:] = stored.reshape(-1).view(np.uint8)


def _session(directory: Path) -> tuple[ort.InferenceSession, list[Any]]:
    """The package's graph, its bfloat16 widened to float32, and memory that it uses."""
    model, settings = load_model(directory), ort.SessionOptions()
    keep: list[Any] = []
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(directory)
    )
    for name, weight in widened_weights(model, directory):
        keep += [weight, ort.OrtValue.ortvalue_from_numpy(weight)]
        settings.add_initializer(name, keep[-1])
    widen_types(model)
    # Folding would read the bfloat16 weights from their file.
    session = ort.InferenceSession(
        model.SerializeToString(),
        settings,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ConstantFolding"],
    )
    return session, keep
