"""A whole sequence in PyTorch, pair by pair from the position and visibility rules, with no cache.

transformers' own model runs every layer except what lies between the projections and the attended
values: its rotary module is made to do nothing, and its attention is the one below, in float64.
For every query it lists the tokens seen and the positions that query and keys are rotated to
(FORMULAS section 3); nothing is shared with the graph or the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctx_export.core.manifest import CacheInfo
from ctx_export.validate.torch_reference import _load, _rotary_owner, load_config

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# inv_freq [F] and the multiplier at a rope length.
Table = Callable[[int], tuple[NDArray[np.float64], float]]

_IMPLEMENTATION = "ctx_pairwise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tokens that a query meets at one position of its own: keys [n] at `positions` [n]."""

    keys: Ints
    positions: Ints
    query_position: int


def causal(query: int) -> Iterator[Group]:
    """Every token up to the query, at its own position."""
    keys = np.arange(query + 1)
    yield Group(keys=keys, positions=keys, query_position=query)


def streaming(query: int, *, sinks: int, window: int) -> Iterator[Group]:
    """The first tokens and the newest ones, renumbered by their places in the cache
    (StreamingLLM, arXiv 2309.17453, section 3.2)."""
    recent = np.arange(max(sinks, query - window + 1), query + 1)
    keys = np.concatenate([np.arange(min(sinks, query + 1)), recent])
    slots = np.arange(len(keys))
    yield Group(keys=keys, positions=slots, query_position=len(keys) - 1)


def lm_infinite(query: int, *, sinks: int, window: int, limit: int) -> Iterator[Group]:
    """The first tokens at distances below `limit`, the newest ones at theirs
    (LM-Infinite, arXiv 2308.16137, section 4)."""
    first = np.arange(min(sinks, query + 1))
    recent = np.arange(max(sinks, query - window + 1), query + 1)
    yield Group(keys=first, positions=first, query_position=min(query, limit - 1))
    yield Group(keys=recent, positions=recent, query_position=query)


def visibility(cache: CacheInfo, original_context: int) -> Callable[[int], Iterator[Group]]:
    """The rule of a layer's cache, by its name."""
    if cache.rule == "streaming":
        return lambda query: streaming(query, sinks=cache.sinks, window=cache.window)
    if cache.rule == "lm-infinite":
        bounds = {"sinks": cache.sinks, "window": cache.window, "limit": original_context}
        return lambda query: lm_infinite(query, **bounds)
    if cache.window:  # without sinks, renumbering shifts query and keys alike
        return lambda query: streaming(query, sinks=0, window=cache.window)
    return causal


class PairwiseReference:
    """transformers' model of a checkpoint under a package's rules.

    `rules` has one visibility rule per layer. `weights` is the precision that the weights are
    rounded to; the model computes in float32, attention in float64.
    """

    def __init__(
        self,
        checkpoint: Path,
        rules: Sequence[Callable[[int], Iterator[Group]]],
        table: Table,
        *,
        weights: str = "fp32",
    ) -> None:
        _register()
        self._model = _load(checkpoint, load_config(checkpoint), weights, "fp32")
        self._model.config._attn_implementation = _IMPLEMENTATION
        owner = _rotary_owner(self._model)
        owner.rotary_emb.forward = _no_rotation(2 * len(owner.rotary_emb.inv_freq))
        self._attentions = [layer.self_attn for layer in owner.layers]
        for attention, rule in zip(self._attentions, rules, strict=True):
            attention.pairwise = _Layer(rule, table)

    def logits(self, token_ids: ArrayLike, lengths: ArrayLike | None = None) -> Floats:
        """Logits [N,V] of one forward over tokens [N].

        `lengths` [N] are the rope lengths of the queries (default: one more than their position,
        as when they are fed one at a time).
        """
        import torch

        ids = np.asarray(token_ids, np.int64).reshape(1, -1)
        count = ids.shape[1]
        used = np.arange(1, count + 1) if lengths is None else np.asarray(lengths)
        for attention in self._attentions:
            attention.pairwise.lengths = used
        with torch.inference_mode():
            output = self._model(input_ids=torch.from_numpy(ids), use_cache=False)
        logits: Floats = output.logits[0].float().numpy()
        return logits


@dataclass(slots=True)
class _Layer:
    rule: Callable[[int], Iterator[Group]]
    table: Table
    lengths: Any = None

    def attend(self, query: Any, key: Any, value: Any, scaling: float) -> Any:
        """[Hq,N,D] attended values of one sequence, one query after the other."""
        import torch

        heads, tokens, _ = query.shape
        grouped = query.double().unflatten(0, (key.shape[0], -1))  # [Hkv,G,N,D]
        keys, values = key.double(), value.double()
        out = torch.empty(*grouped.shape[:2], tokens, value.shape[-1], dtype=torch.float64)
        for position in range(tokens):
            inv_freq, multiplier = self.table(int(self.lengths[position]))
            logits, seen = [], []
            for group in self.rule(position):
                index = torch.from_numpy(group.keys)
                turned = _rotated(
                    keys[:, index], torch.from_numpy(group.positions), inv_freq, multiplier
                )
                at = torch.tensor([group.query_position])
                own = _rotated(grouped[:, :, position][:, :, None], at, inv_freq, multiplier)
                logits.append(own[:, :, 0] @ turned.transpose(1, 2) * scaling)
                seen.append(index)
            weights = torch.cat(logits, dim=-1).softmax(dim=-1)
            out[:, :, position] = weights @ values[:, torch.cat(seen)]
        return out.flatten(0, 1)


def _rotated(x: Any, positions: Any, inv_freq: NDArray[np.float64], multiplier: float) -> Any:
    """`x` [...,n,D] with its leading dims turned in pairs (i, i + F) to `positions` [n]."""
    import torch

    half = len(inv_freq)
    angle = positions.double()[:, None] * torch.from_numpy(np.asarray(inv_freq, np.float64))
    cos, sin = angle.cos() * multiplier, angle.sin() * multiplier
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _no_rotation(rotary_dim: int) -> Callable[..., tuple[Any, Any]]:
    """A rotary module's forward that gives cos and sin of angle 0, [B,N,rotary_dim]."""

    def forward(x: Any, position_ids: Any, **_: Any) -> tuple[Any, Any]:
        import torch

        shape = (*position_ids.shape, rotary_dim)
        return torch.ones(shape, dtype=x.dtype), torch.zeros(shape, dtype=x.dtype)

    return forward


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
) -> tuple[Any, None]:
    """transformers' attention interface: heads [B,H,N,D] in, [B,N,Hq,D] out."""
    import torch

    rows = [
        module.pairwise.attend(*parts, scaling) for parts in zip(query, key, value, strict=True)
    ]
    return torch.stack(rows).transpose(1, 2).to(query.dtype).contiguous(), None


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(_IMPLEMENTATION, lambda *args, **kwargs: None)
