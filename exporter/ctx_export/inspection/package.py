"""What a package holds, as one report of plain JSON values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctx_export.core.cache_type import ELEMENT_BYTES
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.inspection.files import weight_files


def inspect_package(directory: Path) -> dict[str, Any]:
    """A package's manifest, with what its files say today: sizes and the plugin's checksum."""
    manifest = Manifest.load(directory)
    report = {"kind": "package", "path": str(directory), **manifest.to_json()}
    report["cache_bytes_per_sequence"] = cache_bytes(manifest)
    report["weights"] = {
        **manifest.weights,
        **weight_files(directory, manifest.weights.get("files") or ()),
    }
    if manifest.plugins is not None:
        report["plugins"] = {
            **manifest.plugins,
            "state": _checksum_state(directory, manifest.plugins),
        }
    return report


def cache_bytes(manifest: Manifest) -> int:
    """KV cache bytes of one sequence: the sum over layers of 2 · KV heads · head_dim · C · bytes
    per element."""
    try:
        model, slots = manifest.model, sum(cache.capacity for cache in manifest.layers)
        element = ELEMENT_BYTES[manifest.cache_dtype]
        per_slot = 2 * model["kv_heads"] * model["head_dim"] * element
        return int(per_slot * slots)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"the manifest does not state {error}: export the package again") from None


def _checksum_state(directory: Path, plugins: Mapping[str, Any]) -> str:
    """Whether the plugin library is the one that was exported: matches, differs or missing."""
    path = directory / str(plugins.get("file"))
    if not path.is_file():
        return "missing"
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return "matches" if digest.hexdigest() == plugins.get("sha256") else "differs"
