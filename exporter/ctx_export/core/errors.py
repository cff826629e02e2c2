"""The error of use: what was wrong, the value got and the fix, in one line; commands exit 2."""

from __future__ import annotations


class UserError(Exception):
    """Input or options that cannot work. The message names the value and what to change."""


class ValidationFailed(Exception):
    """A package that does not agree with its reference; commands exit 1."""
