"""The runtimes by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.runtime.backend import Backend
from ctx_export.runtime.contract import Contract

BACKENDS = ("ort", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """Sequences of the session; onnxruntime's threads (None: its default) and providers."""

    batch: int = 1
    threads: int | None = None
    providers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads is {self.threads}: give at least 1")


def make_backend(
    name: str, directory: Path, manifest: Manifest, contract: Contract, options: BackendOptions
) -> Backend:
    """The runtime `name` with the package in `directory` loaded."""
    if name == "ort":
        from ctx_export.runtime.ort import OrtBackend

        return OrtBackend(directory, contract, options)
    if options.threads is not None or options.providers:
        raise UserError(f"threads and providers are onnxruntime's: backend {name} takes neither")
    from ctx_export.runtime.tensorrt import open_engine

    return open_engine(name, directory, manifest, contract, options.batch)
