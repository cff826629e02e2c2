"""Loading a package's model.engine, after the plugin library that it was built with."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import ENGINE_NAME, Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """An engine and what has to live as long: the runtime owns the plugins. `errors` are the
    runtime's messages since it was loaded, oldest first."""

    engine: Any
    runtime: Any
    errors: list[str]


def load_engine(trt: Any, directory: Path, manifest: Manifest) -> LoadedEngine:
    """Deserialise `directory`/model.engine with `trt`, the module tensorrt or tensorrt_rtx.

    Raises UserError where it or its plugin library is missing, altered or of no use here.
    """
    path = directory / ENGINE_NAME
    if not path.is_file():
        raise UserError(f"{directory} has no {ENGINE_NAME}: export the package again")
    library = None if manifest.plugins is None else _plugins(directory, manifest.plugins)
    logger = _logger(trt)
    runtime = trt.Runtime(logger)
    if library is not None and runtime.get_plugin_registry().load_library(str(library)) is None:
        raise UserError(
            f"the plugin library {library} cannot be loaded: {reason(logger.errors)}; export the "
            "package again"
        )
    logger.errors.clear()
    engine = _deserialised(runtime, path)
    if engine is None:
        raise UserError(
            f"{path} cannot be loaded: {reason(logger.errors)}; export the package again for "
            "this GPU"
        )
    logger.errors.clear()
    return LoadedEngine(engine=engine, runtime=runtime, errors=logger.errors)


def _plugins(directory: Path, plugins: Mapping[str, Any]) -> Path:
    """The package's plugin library: code, so nothing but what the exporter put there is run."""
    name, stated = str(plugins.get("file")), plugins.get("sha256")
    library = (directory / name).absolute()
    if Path(name).name != name:
        raise UserError(f"the plugin library {name} lies outside of the package: export it again")
    try:
        found = hashlib.sha256(library.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"the plugin library {library} cannot be read: {error.strerror}; export the package "
            "again"
        ) from None
    if found != stated:
        raise UserError(
            f"the plugin library {library} is not the one that the package was exported with: its "
            f"SHA-256 is {found}, the manifest says {stated}; export the package again"
        )
    return library


def _deserialised(runtime: Any, path: Path) -> Any:
    """The engine, or None; its file is mapped, since it holds the model's weights."""
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return runtime.deserialize_cuda_engine(data)


def reason(errors: list[str]) -> str:
    """Why a call failed: the first message names the cause, the others what followed from it."""
    return errors[0] if errors else "no reason was given"


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(message)

    return Log()
