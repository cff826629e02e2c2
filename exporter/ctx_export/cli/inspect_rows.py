"""What the reports of `ctx-inspect` share: a row is a name and a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = tuple[str, str]


def format_bytes(count: int) -> str:
    """Bytes in the unit people read: 96 B, 1.5 KiB, 160.0 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def model_row(model: Mapping[str, Any]) -> str:
    """A decoder's shape."""
    return (
        f"{model.get('family', '?')}, {model.get('layers', '?')} layers, "
        f"{model.get('heads', '?')} heads on {model.get('kv_heads', '?')}, head dimension "
        f"{model.get('head_dim', '?')}, vocabulary {model.get('vocab', '?')}"
    )


def files_row(weights: Mapping[str, Any]) -> str:
    """Weight files: how many, their bytes, those that are missing."""
    missing = weights["missing"]
    told = f", MISSING: {', '.join(missing)}" if missing else ""
    count = len(weights["files"])
    return f"{count} file{'s' * (count != 1)}, {format_bytes(weights['bytes'])}{told}"


def short(value: Any) -> str:
    """A setting's value in a few characters."""
    if isinstance(value, (list, tuple)):
        return f"[{len(value)} numbers]"
    return f"{value:g}" if isinstance(value, float) else str(value)
