"""A package's engine: built beside model.onnx, entered with its plugins in the manifest."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

from ctx_export.build.engine import (
    LIBRARY_NAME,
    EngineInfo,
    EngineRequest,
    build_engine,
    plugin_library,
)
from ctx_export.build.engine_network import context_nodes
from ctx_export.core.manifest import ENGINE_NAME, MODEL_NAME, Manifest
from ctx_export.core.progress import Progress
from ctx_export.ops.spec import OPERATORS


def add_engine(
    runtime: str, manifest: Manifest, package: Path, progress: Progress
) -> tuple[Manifest, list[str]]:
    """Build `package`/model.engine and put the plugin library beside it; raises UserError."""
    library = package / LIBRARY_NAME
    shutil.copyfile(plugin_library(), library)
    info = build_engine(
        EngineRequest(
            model=package / MODEL_NAME,
            engine=package / ENGINE_NAME,
            plugin_library=library,
            runtime=runtime,
            io=manifest.io,
            max_batch=manifest.max_batch,
            max_chunk=manifest.max_chunk,
            capacity=manifest.cache.capacity,
        ),
        progress,
    )
    plugins = {
        "file": LIBRARY_NAME,
        "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "operators": sorted(OPERATORS),
    }
    engine = {"file": ENGINE_NAME, **info.to_json()}
    return replace(manifest, engine=engine, plugins=plugins), _lines(info, package)


def _lines(info: EngineInfo, package: Path) -> list[str]:
    nodes = context_nodes(package / MODEL_NAME)
    operators = Counter(node.operator for node in nodes)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(operators.items()))
    return [
        f"engine {ENGINE_NAME}: {info.runtime} {info.version}, {info.bytes / 1e6:.1f} MB, "
        f"built in {info.seconds:.1f} s for compute capability "
        f"{', '.join(info.compute_capabilities)}",
        f"plugin layers: {len(info.plugin_layers)} = {len(nodes)} ctx nodes ({counts})",
    ]
