"""What a target is: a name, the runtime it builds for, and a reason where that cannot be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctx_export.core.manifest import Manifest
    from ctx_export.core.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Where a TensorRT-like runtime lives in Python and what its engines run on."""

    module: str  # import name with TensorRT's API
    libraries: str  # package that holds its shared libraries
    distribution: str  # what pip calls it
    label: str  # how people call it
    # Compute capabilities a new engine runs on; asked once it has been built.
    compute_capabilities: Callable[[], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing to export to; a module in `targets/` exports exactly one as `TARGET`.

    `available` returns None, or why this machine cannot build for the target, with the fix.
    `preference` orders the targets that `--engine auto` tries, highest first.
    """

    name: str
    summary: str  # one line for the documentation
    preference: int
    runtime: Runtime | None  # None: the ONNX graph is all there is
    available: Callable[[], str | None]
    note: str = ""  # why this target was taken, where that is worth a line

    def build(
        self, manifest: Manifest, package: Path, progress: Progress
    ) -> tuple[Manifest, list[str]]:
        """Add what this target needs beside `package`/model.onnx.

        Returns the manifest with its `engine` and `plugins`, and lines that say what was built.
        """
        if self.runtime is None:
            return manifest, [self.note] if self.note else []
        from ctx_export.build.engine_package import add_engine

        return add_engine(self.name, manifest, package, progress)


def missing_parts(runtime: Runtime, extra: str) -> str | None:
    """Why no engine can be built for `runtime`, or None; imports nothing of the runtime's.

    `extra` is the extra of this distribution that installs the runtime.
    """
    from importlib.util import find_spec

    from ctx_export.build.engine import plugin_library
    from ctx_export.core.errors import UserError

    if find_spec(runtime.module) is None:
        return f"{runtime.label} is not installed: pip install 'ctx-export[{extra}]'"
    try:
        plugin_library()
    except UserError as error:
        return str(error)
    return None
