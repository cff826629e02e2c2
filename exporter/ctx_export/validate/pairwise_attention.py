"""Attention in float64 over listed tokens: for every query, keys and positions of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.validate.quantised import CacheNumbers, Turning
from ctx_export.validate.turning import Heads, Table
from ctx_export.validate.visibility import AVERAGE, Averaging, Group, Rule

Ints = NDArray[np.int64]

_BLOCK = 64  # queries computed at once
# Heads times their dimension up to which a block is too small to share among threads: on two busy
# cores the threads' waiting took 20 times as long as the work.
_SMALL = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """The unrotated keys and the values [Hkv,P,D] of `tokens` [P], in order."""

    keys: Any
    values: Any
    tokens: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How q·k becomes weights: times `scaling`, capped at `softcap` (0: not), in one softmax with
    `sinks` [Hq], learned logits that have no value."""

    scaling: float
    softcap: float = 0.0
    sinks: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """How one layer attends. `rounding` is the torch type that PyTorch would store rotated queries
    and keys and the softmax in, None to keep float64."""

    rule: Rule
    table: Table
    heads: Heads
    rounding: Any = None

    def attend(self, query: Any, cached: Cached, lengths: Ints, how: Scores) -> Any:
        """[Hq,N,Dv] float64: `query` [Hq,N,D] of the last N tokens of `cached`, each with the
        table of its rope length, `lengths` [N]."""
        with _one_thread(if_true=query.shape[0] * query.shape[2] <= _SMALL):
            return self._attend(query, cached, lengths, how)

    def _attend(self, query: Any, cached: Cached, lengths: Ints, how: Scores) -> Any:
        import torch

        count = query.shape[1]
        asked = cached.tokens[len(cached.tokens) - count :]
        if isinstance(self.rule, Averaging):
            cached = with_averages(cached, self.rule, self.rounded)
        queries = self.heads.pairs(query).unflatten(0, (len(cached.keys), -1))  # [Hkv,G,N,D/2]
        keys, values = self.heads.pairs(cached.keys), cached.values.double()
        out = torch.empty(*queries.shape[:3], values.shape[-1], dtype=torch.float64)
        turner = _Turner(self, keys, cached.tokens)
        for block in blocks(lengths):
            turner.use(int(lengths[block.start]))
            met = meetings([self.rule(int(token)) for token in asked[block]], cached.tokens)
            scores = []
            for one in met:
                own = turner.turned(queries[:, :, block], one.query_positions)
                score = one.products(own, turner.keys_of(one).mT) * how.scaling
                if how.softcap:
                    score = how.softcap * torch.tanh(score / how.softcap)
                if not one.visible.all():
                    score.masked_fill_(torch.from_numpy(~one.visible), -torch.inf)
                scores.append(score)
            if how.sinks is not None:
                sinks = how.sinks.double().reshape(*queries.shape[:2], 1, 1)
                scores.append(sinks.expand(*scores[0].shape[:3], 1))
            weights = self.rounded(torch.cat(scores, dim=-1).softmax(dim=-1))
            widths = [one.visible.shape[1] for one in met]
            parts = weights[..., : sum(widths)].split(widths, dim=-1)
            out[:, :, block] = sum(
                one.products(part, values[:, one.rows])
                for one, part in zip(met, parts, strict=True)
            )
        return out.flatten(0, 1)

    def kept(self, cached: Cached, numbers: CacheNumbers) -> Cached:
        """What is read back of a quantised cache; where rotated keys are kept, there is one table
        for all lengths."""
        turning = Turning(
            heads=self.heads, table=self.table(1), tokens=cached.tokens, rounded=self.rounded
        )
        keys = numbers.turned_keys(cached.keys, turning)
        return replace(cached, keys=keys, values=numbers.values(cached.values))

    def rounded(self, x: Any) -> Any:
        return x if self.rounding is None else x.to(self.rounding).double()


class _Turner:
    """Turns pairs with the table of the rope length in use. The keys that are met at their own
    positions, which most rules say, are turned once a table."""

    def __init__(self, attention: Attention, keys: Any, tokens: Ints) -> None:
        self._attention = attention
        self._keys = keys  # [Hkv,P,D/2] complex
        self._tokens = tokens
        self._length = -1
        self._at_home: Any = None  # [Hkv,P,D]

    def use(self, length: int) -> None:
        if length != self._length:
            self._length, self._table = length, self._attention.table(length)
            self._at_home = None

    def turned(self, pairs: Any, positions: Ints) -> Any:
        """`pairs` [...,n,D/2] at `positions`: real, [...,n,D], two dims a pair."""
        import torch

        factors = self._attention.heads.factors(self._table, positions)
        return self._attention.rounded(torch.view_as_real(pairs * factors).flatten(-2))

    def keys_of(self, met: Meeting) -> Any:
        """Rotated keys of a meeting, [Hkv,n,D] or [Hkv,Q,n,D]."""
        if not np.array_equal(met.positions, self._tokens[met.rows]):
            return self.turned(self._keys[:, met.rows], met.positions)
        if self._at_home is None:
            self._at_home = self.turned(self._keys, self._tokens)
        return self._at_home[:, met.rows]


@contextmanager
def _one_thread(*, if_true: bool) -> Iterator[None]:
    """PyTorch computes in one thread, where that is asked for."""
    import torch

    threads = torch.get_num_threads()
    if if_true:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if if_true:
            torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Keys that a block of Q queries meets: `rows` of the cache at `positions`. Both are [n]
    where no two queries meet a key at different positions, else rows are [Q,n] and positions
    [Q,n], or [n] where all queries agree on them. `visible` [Q,n] is False for padding."""

    rows: Ints
    positions: Ints
    visible: NDArray[np.bool_]
    query_positions: Ints  # [Q]

    def products(self, left: Any, right: Any) -> Any:
        """[Hkv,G,Q,b] of `left` [Hkv,G,Q,a] and `right` [Hkv,a,b], or [Hkv,Q,a,b] of their own."""
        if self.rows.ndim == 1:
            return left @ right[:, None]
        return (left.transpose(1, 2) @ right).transpose(1, 2)


def with_averages(cached: Cached, rule: Averaging, rounded: Callable[[Any], Any]) -> Cached:
    """A cache and behind it the means of all blocks whose tokens it has."""
    import torch

    first = int(np.searchsorted(cached.tokens, rule.first))
    after = cached.tokens[first:] - rule.first
    whole = np.flatnonzero(after % rule.block == 0)
    starts = whole[whole + rule.block <= len(after)]
    rows = torch.from_numpy(first + starts[:, None] + np.arange(rule.block))
    keys, values = (
        torch.cat([part.double(), rounded(part.double()[:, rows].mean(dim=2))], dim=1)
        for part in (cached.keys, cached.values)
    )
    tokens = np.concatenate([cached.tokens, AVERAGE + after[starts] // rule.block])
    return Cached(keys=keys, values=values, tokens=tokens)


def blocks(lengths: Ints) -> Iterator[slice]:
    """Queries 0 … N−1 in runs of at most 64 that share a rope length."""
    start = 0
    for end in range(1, len(lengths) + 1):
        last = end == len(lengths) or lengths[end] != lengths[start]
        if last or end - start == _BLOCK:
            yield slice(start, end)
            start = end


def meetings(queries: Sequence[tuple[Group, ...]], tokens: Ints) -> list[Meeting]:
    """The groups of several queries over a cache of `tokens` [P], one `Meeting` a group."""
    return [_meeting(groups, tokens) for groups in zip(*queries, strict=True)]


def _meeting(groups: Sequence[Group], tokens: Ints) -> Meeting:
    rows = [_rows(group.keys, tokens) for group in groups]
    query_positions = np.array([group.query_position for group in groups])
    at = np.full(len(tokens), -1)  # position of every row, -1 where no query meets it
    visible = np.zeros((len(groups), len(tokens)), np.bool_)
    for index, (row, group) in enumerate(zip(rows, groups, strict=True)):
        if ((at[row] >= 0) & (at[row] != group.positions)).any():
            return _padded(rows, groups, query_positions)
        at[row] = group.positions
        visible[index, row] = True
    used = np.flatnonzero(at >= 0)
    return Meeting(
        rows=used, positions=at[used], visible=visible[:, used], query_positions=query_positions
    )


def _padded(rows: Sequence[Ints], groups: Sequence[Group], query_positions: Ints) -> Meeting:
    """Every query with its own list, padded to the longest with row 0 at position 0."""
    longest = max(len(row) for row in rows)
    index, positions = np.zeros((2, len(rows), longest), np.int64)
    visible = np.zeros((len(rows), longest), np.bool_)
    for query, (row, group) in enumerate(zip(rows, groups, strict=True)):
        index[query, : len(row)] = row
        positions[query, : len(row)] = group.positions
        visible[query, : len(row)] = True
    if (positions == positions[0]).all():
        positions = positions[0]
    return Meeting(
        rows=index, positions=positions, visible=visible, query_positions=query_positions
    )


def _rows(keys: Ints, tokens: Ints) -> Ints:
    """Where `keys` are in `tokens`; every token that a query sees must be there."""
    rows = np.searchsorted(tokens, keys)
    if len(keys) and (rows[-1] >= len(tokens) or (tokens[rows] != keys).any()):
        raise ValueError(f"tokens {keys[0]} to {keys[-1]} are seen and not all given")
    return rows
