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
from ctx_export.core.rules import DualChunk, Landmark, Memory, SelfExtend

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tokens that a query meets at one position of its own: keys [n] at `positions` [n]."""

    keys: Ints
    positions: Ints
    query_position: int


# The groups of a query at an absolute position, as many for every query.
Rule = Callable[[int], tuple[Group, ...]]
# Key AVERAGE + m of a group is the mean of a rule's block m.
AVERAGE = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaging:
    """A rule whose queries also meet means of blocks: of the keys and of the values, unrotated, of
    `block` tokens each, from token `first` on."""

    groups: Rule
    first: int
    block: int

    def __call__(self, query: int) -> tuple[Group, ...]:
        return self.groups(query)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """A rule that depends on the keys: see `pairwise_landmark`."""

    sinks: int
    window: int
    parameters: Landmark


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


def self_extend(query: int, *, group: int, neighbor: int) -> tuple[Group, ...]:
    """Distances below `neighbor` as they are, others in groups of tokens that share a position
    (Self-Extend, arXiv 2401.01325, section 3.2)."""
    keys = np.arange(query + 1)
    near = keys[query - keys < neighbor]
    far = keys[query - keys >= neighbor]
    return (
        Group(keys=near, positions=near, query_position=query),
        Group(
            keys=far,
            positions=far // group,
            query_position=query // group + neighbor - neighbor // group,
        ),
    )


def dual_chunk(query: int, *, chunk: int, reach: int) -> tuple[Group, ...]:
    """The query's own chunk, the one before it and all earlier ones, each key at its place in its
    chunk (Dual Chunk Attention, arXiv 2402.17463, section 3)."""
    keys = np.arange(query + 1)
    behind = query // chunk - keys // chunk
    place = query % chunk
    at = (place, min(place + chunk, reach - 1), reach - 1)
    return tuple(
        Group(keys=keys[part], positions=keys[part] % chunk, query_position=position)
        for part, position in zip((behind == 0, behind == 1, behind > 1), at, strict=True)
    )


def memory(query: int, *, sinks: int, window: int, rule: Memory) -> tuple[Group, ...]:
    """The sinks, the newest means of evicted blocks and the tokens after those, each at its rank
    in that order (FORMULAS section 3; after arXiv 1911.05507)."""
    evicted = max(0, query + 1 - sinks - window)
    blocks = evicted // rule.block
    keys = np.concatenate(
        [
            np.arange(min(sinks, query + 1)),
            AVERAGE + np.arange(max(0, blocks - rule.memory), blocks),
            np.arange(sinks + blocks * rule.block, query + 1),
        ]
    )
    ranks, average = np.arange(len(keys)), keys >= AVERAGE
    # The cache lists tokens first; a group has its keys in the cache's order.
    return tuple(
        Group(keys=keys[part], positions=ranks[part], query_position=len(keys) - 1)
        for part in (~average, average)
    )


def rule_of(cache: CacheInfo, original_context: int) -> Rule | Choosing:
    """The rule of a layer's cache, by its name; raises UserError for one that is unknown."""
    sinks, window = cache.sinks, cache.window
    match cache.parameters:
        case SelfExtend(group=group, neighbor=neighbor):
            return lambda query: self_extend(query, group=group, neighbor=neighbor)
        case DualChunk(chunk=chunk, reach=reach):
            return lambda query: dual_chunk(query, chunk=chunk, reach=reach)
        case Memory() as means:
            return Averaging(
                groups=lambda query: memory(query, sinks=sinks, window=window, rule=means),
                first=sinks,
                block=means.block,
            )
        case Landmark() as landmark:
            return Choosing(sinks=sinks, window=window, parameters=landmark)
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
