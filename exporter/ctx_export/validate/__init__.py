"""Stage 7: position by position, a package against PyTorch.

`run` compares and returns a `ValidationReport`; `update_package` writes it into the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctx_export.validate.report import ValidationReport
    from ctx_export.validate.validation import run, update_package

__all__ = ["ValidationReport", "run", "update_package"]


def __getattr__(name: str) -> Any:
    # Imported on first use: commands that do not validate never load the runtime.
    if name in ("run", "update_package"):
        from ctx_export.validate import validation

        return getattr(validation, name)
    if name == "ValidationReport":
        from ctx_export.validate.report import ValidationReport

        return ValidationReport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
