"""Build a TensorRT or TensorRT-RTX engine from a package's model.onnx, in a child process.

The builder can end its process (it does where the plugin library cannot be resolved) and needs a
library path set before it starts; in a child, both are contained and a crash becomes an error.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ctx_export.build.engine_model import engine_model
from ctx_export.build.engine_process import Crashed, TimedOut, run_worker
from ctx_export.build.engine_profiles import Limits
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import TensorInfo
from ctx_export.core.progress import Progress, SilentProgress
from ctx_export.targets import targets
from ctx_export.targets.base import Runtime

LIBRARY_NAME = "libctx_plugins.so"
_WORKER = "ctx_export.build.engine_worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One engine to build. `io` is the package's contract; `runtime` a target with an engine."""

    model: Path  # model.onnx, its external data beside it
    engine: Path  # file to write
    plugin_library: Path
    runtime: str  # tensorrt, tensorrt-rtx
    io: tuple[TensorInfo, ...]
    max_batch: int
    max_chunk: int
    capacity: int  # cache slots per sequence and layer
    optimization_level: int | None = None  # 0 … 5; None: the runtime's own
    time_limit_s: float = 3600.0

    def limits(self) -> Limits:
        return Limits(max_batch=self.max_batch, max_chunk=self.max_chunk, capacity=self.capacity)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What was built. `profiles` maps profile name → input → [minimum, optimum, maximum]."""

    runtime: str
    version: str
    compute_capabilities: tuple[str, ...]
    profiles: Mapping[str, Mapping[str, list[list[int]]]]
    plugin_layers: tuple[str, ...]  # names of the ctx nodes that became plugin layers, in order
    bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The manifest's `engine` entry."""
        return asdict(self)


def plugin_library() -> Path:
    """Absolute path of the plugin library; raises UserError where it has not been built."""
    path = Path(__file__).resolve().parents[1] / "lib" / LIBRARY_NAME
    if not path.is_file():
        raise UserError(
            f"the plugin library {path} has not been built: run make setup in the checkout"
        )
    return path


def build_engine(request: EngineRequest, progress: Progress | None = None) -> EngineInfo:
    """Parse the model, check that every ctx node became a plugin layer, build, write the engine.

    Raises UserError, and leaves no engine file, where the model cannot be built, a ctx node did
    not become a plugin layer, the builder crashed or the time limit passed.
    """
    runtime = _runtime(request)
    try:
        with (
            engine_model(request.model) as model,
            tempfile.TemporaryDirectory(prefix="ctx-engine-") as scratch,
        ):
            prepared = replace(request, model=model)
            return _build(prepared, runtime, Path(scratch), progress or SilentProgress())
    except BaseException:
        request.engine.unlink(missing_ok=True)
        raise


def _runtime(request: EngineRequest) -> Runtime:
    target = targets().get(request.runtime)
    if target is None or target.runtime is None:
        raise ValueError(f"{request.runtime!r} is not a runtime with engines")
    reason = target.available()
    if reason is not None:
        raise UserError(f"--engine {request.runtime}: {reason}")
    for what, path in (("model", request.model), ("plugin library", request.plugin_library)):
        if not path.is_file():
            raise UserError(f"the {what} {path} does not exist")
    return target.runtime


def _build(
    request: EngineRequest, runtime: Runtime, scratch: Path, progress: Progress
) -> EngineInfo:
    library_path = scratch / "lib"
    link_libraries(runtime.libraries, library_path)
    order = scratch / "request.json"
    order.write_text(json.dumps(_order(request, runtime)), encoding="utf-8")
    command = [sys.executable, "-X", "faulthandler", "-m", _WORKER, str(order)]
    log = scratch / "log"
    try:
        result = run_worker(
            command,
            environment=_environment(library_path),
            log=log,
            time_limit_s=request.time_limit_s,
            progress=progress,
        )
    except TimedOut:
        raise UserError(
            f"the {runtime.label} build of {request.model} took longer than "
            f"{request.time_limit_s:g} s and was stopped; its last words: {_tail(log)}; raise the "
            "limit or export with --engine none"
        ) from None
    except Crashed as crash:
        raise UserError(
            f"the {runtime.label} builder {crash} on {request.model}; its last words: "
            f"{_tail(log)}; export with --engine none to have the package without an engine"
        ) from None
    if "os_error" in result:  # a full disk is not the builder's fault
        number, text, name = result["os_error"]
        raise OSError(number, text, name or str(request.engine))
    if "error" in result:
        raise UserError(f"{runtime.label}: {result['error']}")
    result["compute_capabilities"] = runtime.compute_capabilities()
    result["plugin_layers"] = tuple(result["plugin_layers"])
    return EngineInfo(runtime=request.runtime, **result)


def _order(request: EngineRequest, runtime: Runtime) -> dict[str, Any]:
    return {
        "module": runtime.module,
        "model": str(request.model.resolve()),
        "engine": str(request.engine.resolve()),
        "plugin_library": str(request.plugin_library.resolve()),
        "optimization_level": request.optimization_level,
        "io": [asdict(tensor) for tensor in request.io],
        "limits": asdict(request.limits()),
    }


def link_libraries(package: str, directory: Path) -> None:
    """Links named lib….so for the versioned libraries of a pip package.

    TensorRT's parser opens `libtensorrt_rtx.so` as soon as it meets a plugin; the wheels have
    `libtensorrt_rtx.so.1` only.
    """
    from importlib.util import find_spec

    directory.mkdir()
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("lib*.so.*")):
            link = directory / (library.name.split(".so.")[0] + ".so")
            if not link.exists():
                link.symlink_to(library.resolve())


def _environment(library_path: Path) -> dict[str, str]:
    package_root = str(Path(__file__).resolve().parents[2])
    environment = dict(os.environ)
    for name, first in (("LD_LIBRARY_PATH", str(library_path)), ("PYTHONPATH", package_root)):
        rest = environment.get(name)
        environment[name] = f"{first}{os.pathsep}{rest}" if rest else first
    return environment


def _tail(log: Path, lines: int = 6) -> str:
    """The last lines of the builder's log that say something, on one line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(said[-lines:]) or "none"
