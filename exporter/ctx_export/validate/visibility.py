"""Which tokens a query meets and at which positions, per cache rule (FORMULAS section 3).

Written from the papers' definitions, one query at a time: nothing here knows of slots or rings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CAUSAL, CacheInfo

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tokens that a query meets at one position of its own: keys [n] at `positions` [n]."""

    keys: Ints
    positions: Ints
    query_position: int


# The groups of a query at an absolute position, as many for every query.
Rule = Callable[[int], tuple[Group, ...]]


def causal(query: int) -> tuple[Group, ...]:
    """Every token up to the query, at its own position."""
    return sliding_window(query, window=query + 1)


def sliding_window(query: int, *, window: int) -> tuple[Group, ...]:
    """The newest `window` tokens, at their own positions (arXiv 2004.05150, section 3.1)."""
    keys = np.arange(max(0, query - window + 1), query + 1)
    return (Group(keys=keys, positions=keys, query_position=query),)


def streaming(query: int, *, sinks: int, window: int) -> tuple[Group, ...]:
    """The first tokens and the newest ones, renumbered by their places in the cache
    (StreamingLLM, arXiv 2309.17453, section 3.2).

    Rotation sees differences of positions alone, so all places of one query may be moved by the
    same number: by the one that gives the newest tokens their own positions back.
    """
    first = np.arange(min(sinks, query + 1))
    recent = np.arange(max(sinks, query - window + 1), query + 1)
    moved = query - (len(first) + len(recent) - 1)
    return (
        Group(keys=first, positions=first + moved, query_position=query),
        Group(keys=recent, positions=recent, query_position=query),
    )


def lm_infinite(query: int, *, sinks: int, window: int, limit: int) -> tuple[Group, ...]:
    """The first tokens at distances below `limit`, the newest ones at theirs
    (LM-Infinite, arXiv 2308.16137, section 4)."""
    first = np.arange(min(sinks, query + 1))
    recent = np.arange(max(sinks, query - window + 1), query + 1)
    return (
        Group(keys=first, positions=first, query_position=min(query, limit - 1)),
        Group(keys=recent, positions=recent, query_position=query),
    )


def rule_of(cache: CacheInfo, original_context: int) -> Rule:
    """The rule of a layer's cache, by its name; raises UserError for one that is unknown."""
    sinks, window = cache.sinks, cache.window
    if cache.rule == "streaming":
        return lambda query: streaming(query, sinks=sinks, window=window)
    if cache.rule == "lm-infinite":
        limit = original_context
        return lambda query: lm_infinite(query, sinks=sinks, window=window, limit=limit)
    if cache.rule == "sliding-window" and not sinks:
        return lambda query: sliding_window(query, window=window)
    if cache.rule == CAUSAL and not (sinks or window):
        return causal
    raise UserError(
        f"a cache of rule {cache.rule} with {sinks} sinks and window {window} has no PyTorch "
        "reference in this version: validate a package of a policy that ctx-export --help lists"
    )
