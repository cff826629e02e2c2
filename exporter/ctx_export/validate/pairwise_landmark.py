"""Landmark attention in float64, every query against all keys (FORMULAS section 3).

Rotation sees differences of positions alone, so all places of one query are moved by the same
number: by the one that gives the newest tokens their own positions back. Blocks that share the
lowest slot, and the sinks, keep their positions, and the query moves instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.rules import Landmark
from ctx_export.validate.pairwise_attention import (
    Attention,
    Cached,
    Scores,
    blocks,
    with_averages,
)
from ctx_export.validate.visibility import Averaging, Choosing

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkAttention(Attention):
    """One layer that chooses blocks; `rule` is not asked.

    `margins` holds, per query of the last call [N], by how much its closest choice was decided:
    the least score chosen less the largest one that was not, relative to the largest score of
    that query or to what one usually is, if that is more; infinite where nothing was left out.
    """

    choosing: Choosing
    margins: list[float] = field(default_factory=list)

    def _attend(self, query: Any, cached: Cached, lengths: Ints, how: Scores) -> Any:
        import torch

        count = query.shape[1]
        asked = cached.tokens[len(cached.tokens) - count :]
        if not np.array_equal(cached.tokens, np.arange(len(cached.tokens))):
            raise ValueError("landmark attention chooses among all tokens: give every one")
        sequence = _Sequence(self, cached)
        queries = self.heads.pairs(query).unflatten(0, (len(cached.keys), -1))
        out = torch.empty(*queries.shape[:3], cached.values.shape[-1], dtype=torch.float64)
        self.margins.clear()
        for block in blocks(lengths):
            table = self.table(int(lengths[block.start]))
            weights, margins = sequence.weights(queries[:, :, block], asked[block], table, how)
            out[:, :, block] = self.rounded(weights) @ sequence.values[:, None]
            self.margins.extend(margins.tolist())
        return out.flatten(0, 1)


class _Sequence:
    """The keys of a sequence as its queries choose among them."""

    def __init__(self, attention: LandmarkAttention, cached: Cached) -> None:
        self._attention = attention
        self._rule: Landmark = attention.choosing.parameters
        self._sinks, self._window = attention.choosing.sinks, attention.choosing.window
        self.values = cached.values.double()
        self._keys = attention.heads.pairs(cached.keys)
        block, trained = self._rule.block, self._rule.token is not None
        self._offset = block - 1 if trained else block // 2
        self._token = np.arange(len(cached.tokens))
        after = self._token - self._sinks
        self._block = np.where(after < 0, -1, after // block)  # -1: sinks
        self._count = max(0, len(self._token) - self._sinks) // block
        if trained:
            last = self._sinks + np.arange(1, self._count + 1) * block - 1
            self._representatives = self._keys[:, last]
        else:
            means = Averaging(groups=lambda query: (), first=self._sinks, block=block)
            whole = with_averages(cached, means, attention.rounded)
            self._representatives = attention.heads.pairs(whole.keys[:, len(self._token) :])

    def weights(
        self, queries: Any, asked: Ints, table: tuple[Doubles, float], how: Scores
    ) -> tuple[Any, Doubles]:
        """Weights [Hkv,G,Q,P] of all tokens and the margin of every query [Q]."""
        import torch

        block, topk = self._rule.block, self._rule.topk
        candidates = np.maximum(0, asked + 1 - self._window - self._sinks) // block
        lowest = candidates - np.minimum(candidates, topk + 1)  # blocks before it share a slot
        moved = asked - lowest * block
        first = np.arange(self._count) * block + self._sinks + self._offset
        shared = np.full(self._count, self._sinks + self._offset)
        scores = self._products(
            queries,
            self._representatives,
            table,
            (asked, first),
            (moved, shared),
            np.arange(self._count)[None] < lowest[:, None],
        )
        open_ = np.arange(self._count)[None] < candidates[:, None]
        usual = self._usual(queries, table) * how.scaling
        chosen, margins = self._chosen(scores * how.scaling, open_, usual)
        logits = self._products(
            queries,
            self._keys,
            table,
            (asked, self._token),
            (moved, np.where(self._block < 0, self._token, self._sinks + self._places())),
            self._block[None] < lowest[:, None],
        )
        logits = logits * how.scaling
        if how.softcap:
            logits = how.softcap * torch.tanh(logits / how.softcap)
        behind = torch.from_numpy(self._block[None] < candidates[:, None])  # sinks, candidates
        sinks = torch.from_numpy(self._block < 0)
        read = torch.zeros_like(logits, dtype=torch.bool)
        if self._count:
            index = np.clip(self._block, 0, self._count - 1)
            read = chosen[..., torch.from_numpy(index)]
        read = (read & behind) | ~behind | sinks
        read = read & torch.from_numpy(self._token[None] <= asked[:, None])
        logits = logits.masked_fill(~read, -torch.inf)
        if self._rule.token is not None:
            return self._grouped(logits, asked), margins
        if how.sinks is None:
            return logits.softmax(dim=-1), margins
        learned = how.sinks.double().reshape(*logits.shape[:2], 1, 1)
        joined = torch.cat([logits, learned.expand(*logits.shape[:3], 1)], dim=-1)
        return joined.softmax(dim=-1)[..., :-1], margins

    def _places(self) -> Ints:
        """Place of every token in its block."""
        return (self._token - self._sinks) % self._rule.block

    def _products(
        self,
        queries: Any,
        keys: Any,
        table: tuple[Doubles, float],
        near: tuple[Ints, Ints],
        far: tuple[Ints, Ints],
        is_far: NDArray[np.bool_],
    ) -> Any:
        """q·k [Hkv,G,Q,n] at the positions `near` or, where `is_far` [Q,n], at `far`: each of the
        queries [Q] and of the keys [n]."""
        import torch

        both = []
        for query_at, key_at in (near, far):
            turned = [
                self._attention.rounded(
                    torch.view_as_real(
                        pairs * self._attention.heads.factors(table, positions)
                    ).flatten(-2)
                )
                for pairs, positions in ((queries, query_at), (keys, key_at))
            ]
            both.append(turned[0] @ turned[1][:, None].mT)
        return torch.where(torch.from_numpy(is_far), both[1], both[0])

    def _usual(self, queries: Any, table: tuple[Doubles, float]) -> Any:
        """About how large the largest q·representative is, [Hkv,G,Q]: those of random directions
        have that deviation."""
        keys = self._representatives.abs().square().sum(dim=-1).sqrt().amax(dim=-1)
        sizes = queries.abs().square().sum(dim=-1).sqrt()
        return sizes * keys[:, None, None] * table[1] ** 2 / self._attention.heads.head_dim**0.5

    def _chosen(
        self, scores: Any, candidates: NDArray[np.bool_], usual: Any
    ) -> tuple[Any, Doubles]:
        """Which blocks are read [Hkv,G,Q,n] and the margin of every query [Q]: the best by score,
        of equals the first. `usual` [Hkv,G,Q] is the least that margins are relative to."""
        import torch

        topk = self._rule.topk
        if self._rule.shared:
            scores = scores.sum(dim=1, keepdim=True).expand_as(scores)
            usual = usual.sum(dim=1, keepdim=True)
        allowed = torch.from_numpy(candidates)
        scores = scores.masked_fill(~allowed, -torch.inf)
        margins = np.full(scores.shape[2], np.inf)
        if scores.shape[-1] <= topk:
            return allowed.expand_as(scores), margins
        ranked, order = scores.sort(dim=-1, descending=True, stable=True)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        chosen.scatter_(-1, order[..., :topk], True)
        gap = ranked[..., topk - 1] - ranked[..., topk]
        largest = scores.masked_fill(~allowed, 0).abs().amax(dim=-1)
        largest = largest.maximum(usual).clamp_min(1e-30)
        relative = torch.where(ranked[..., topk].isinf(), torch.inf, gap / largest)
        return chosen & allowed, relative.amin(dim=(0, 1)).numpy()

    def _grouped(self, logits: Any, asked: Ints) -> Any:
        """Grouped softmax (arXiv 2305.16300, section 3.2): the query's own group is the sinks, its
        block and the landmarks of the other blocks that it reads; of those blocks a token's weight
        is its landmark's times its share of its block. Landmarks themselves have none."""
        import torch

        block, hidden = self._rule.block, -torch.inf
        own_block = np.where(asked < self._sinks, -1, (asked - self._sinks) // block)
        mark = (self._block >= 0) & (self._places() == block - 1)
        own = (self._block[None] < 0) | (self._block[None] == own_block[:, None])
        group = torch.from_numpy(own ^ mark[None])
        outer = logits.masked_fill(~group, hidden).softmax(dim=-1)
        inner = logits.masked_fill(torch.from_numpy(mark), hidden)
        weights = outer.masked_fill(torch.from_numpy(~own | mark[None]), 0.0)
        for m in range(self._count):
            rows = slice(self._sinks + m * block, self._sinks + (m + 1) * block - 1)
            other = torch.from_numpy(own_block != m)[:, None]
            read = torch.isfinite(inner[..., rows]).any(dim=-1, keepdim=True) & other
            share = inner[..., rows].softmax(dim=-1) * outer[..., rows.stop : rows.stop + 1]
            weights[..., rows] = torch.where(read, share, weights[..., rows])
        return weights
