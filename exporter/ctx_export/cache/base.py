"""What a cache policy is: which tokens a query sees and at which positions it sees the sinks.

A bounded cache keeps the first `sinks` tokens and a ring of the newest ones; see FORMULAS section
3. Keys are rotated once, at their absolute positions. Queries meet the window's keys at their own
absolute position and the sinks' keys at min(position, `sink_position`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a policy decides on, in tokens: its sinks and window and the trained context L."""

    sinks: int
    window: int  # tokens a query sees back, itself included
    original_context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One bounded cache policy; a module in `cache/` exports exactly one as `POLICY`.

    `refusal` returns why bounds cannot work, with the fix, or None.
    """

    name: str  # the module's name with hyphens
    aliases: tuple[str, ...] = ()
    summary: str  # one line for --help and the support table
    source: str  # paper or model that defines it
    default_sinks: int
    sink_position: Callable[[Bounds], int]
    refusal: Callable[[Bounds], str | None] = lambda bounds: None
