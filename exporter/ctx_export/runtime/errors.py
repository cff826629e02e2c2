"""Errors of sessions; all are errors of use, with the value got and the fix in the message."""

from __future__ import annotations

from ctx_export.core.errors import UserError


class ContextLimitError(UserError):
    """More tokens than the package's baked maximum; nothing was changed."""


class SessionStateError(UserError):
    """The session cannot do this now: closed, in use by another thread, or out of reach."""
