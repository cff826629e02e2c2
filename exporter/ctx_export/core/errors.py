"""The error of use: what was wrong, the value got and the fix, in one line; commands exit 2."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Input or options that cannot work. The message names the value and what to change."""


class ValidationFailed(Exception):
    """A package that does not agree with its reference; commands exit 1. `lines` say where."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = tuple(lines)
