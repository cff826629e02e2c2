"""What a cache policy is: which tokens a query sees, at which positions, and what the cache keeps.

FORMULAS section 3 defines them. A `WindowPolicy` keeps the first `sinks` tokens and a ring of the
newest ones, their keys rotated once, at absolute positions: queries meet the window's keys at
their own position and the sinks' keys at min(position, `sink_position`). A `ReachPolicy` looks
behind its window, by an operator of its own that rotates unrotated keys when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctx_export.core.rules import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One cache policy; a module in `cache/` exports exactly one as `POLICY`."""

    name: str  # the module's name with hyphens
    aliases: tuple[str, ...] = ()
    summary: str  # one line for --help and the support table
    source: str  # paper or model that defines it
    options: tuple[str, ...] = ("sinks", "window")  # what it takes, by the recipe's fields
    bounded: bool = True  # memory does not grow with the tokens, of which there may be any number


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a window policy decides on, in tokens: its sinks and window and the trained context
    L."""

    sinks: int
    window: int  # tokens a query sees back, itself included
    original_context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPolicy(Policy):
    """The first tokens and a window, or the window alone.

    `refusal` returns why bounds cannot work, with the fix, or None.
    """

    default_sinks: int
    sink_position: Callable[[Bounds], int]
    refusal: Callable[[Bounds], str | None] = lambda bounds: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a reach policy decides on: the options that were given and, in tokens, the rest."""

    span: int  # T: positions that the model knows, trained on or scaled to
    target: int  # longest context where the cache keeps every token
    max_chunk: int  # of one call
    options: Mapping[str, Any] = field(default_factory=dict)  # by the recipe's fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a reach policy decided."""

    rule: Rule
    sinks: int = 0
    window: int = 0  # newest tokens that are seen one by one, the query included; 0: see the rule


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachPolicy(Policy):
    """A rule of `core.rules`. `decide` raises UserError for what cannot work, with the fix."""

    decide: Callable[[Asked], Reach]
