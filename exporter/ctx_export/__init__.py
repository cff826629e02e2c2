"""Long-context packages of decoder models: export, validate and run them.

The names below are imported on first use, so that importing `ctx_export` stays instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctx_export.core.errors import UserError, ValidationFailed
    from ctx_export.pipeline import export
    from ctx_export.runtime.session import Session, open_session

_HOMES = {
    "Session": ("runtime.session", "Session"),
    "UserError": ("core.errors", "UserError"),
    "ValidationFailed": ("core.errors", "ValidationFailed"),
    "export": ("pipeline", "export"),
    "open_session": ("runtime.session", "open_session"),
}

__all__ = ["Session", "UserError", "ValidationFailed", "export", "open_session"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
