"""Stage 7: position by position, a package against PyTorch.

`run` compares and returns a `ValidationReport`; `update_package` writes it into the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctx_export.validate.file_check import check_file
    from ctx_export.validate.file_report import FileReport
    from ctx_export.validate.report import ValidationReport
    from ctx_export.validate.validation import run, update_package

__all__ = ["FileReport", "ValidationReport", "check_file", "run", "update_package"]


_HOMES = {
    "FileReport": "file_report",
    "ValidationReport": "report",
    "check_file": "file_check",
    "run": "validation",
    "update_package": "validation",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: commands that do not validate never load the runtime.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
