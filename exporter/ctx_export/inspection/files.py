"""Reading what lies in a directory: JSON objects, and weight files with their sizes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; download the checkpoint again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}: it must be a JSON object")
    return value


def weight_files(directory: Path, names: Iterable[Any]) -> dict[str, Any]:
    """The named files with their total bytes, and those that are not there."""
    known = [str(name.get("file")) if isinstance(name, Mapping) else str(name) for name in names]
    present = [name for name in known if (directory / name).is_file()]
    return {
        "files": known,
        "bytes": sum((directory / name).stat().st_size for name in present),
        "missing": [name for name in known if name not in present],
    }
