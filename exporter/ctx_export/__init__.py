"""Long-context packages of decoder models: export, validate and run them.

`open_session` is imported on first use, so that importing `ctx_export` stays instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctx_export.runtime.session import open_session

__all__ = ["open_session"]


def __getattr__(name: str) -> Any:
    if name == "open_session":
        from ctx_export.runtime.session import open_session

        return open_session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
