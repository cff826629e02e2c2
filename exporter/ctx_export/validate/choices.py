"""Landmark's choices of blocks: which rows rounding cannot turn, and keys that make them clear."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.rules import Landmark
from ctx_export.validate.compare import UNIT_ROUNDOFF
from ctx_export.validate.synthetic import round_to

Floats = NDArray[np.float32]

# Scores nearer than so many roundings of their size may be ranked either way.
_ROUNDINGS = 32
# Scores of equal keys, such as those of landmark tokens in a model's first layer: nothing but
# rounding tells them apart.
_EQUAL = 1e-9
# In float32 other close choices seldom turn: rows are compared where at most this share of the
# tokens before them has one.
_SHARE = 0.05
_SEED = 20230525


def decided(margins: NDArray[np.float64], precision: str) -> NDArray[np.bool_]:
    """Which tokens [N] of a forward compute the same however `precision` rounds: they and those
    that they read chose clearly. `margins` [N] are those of `LandmarkAttention`, in order."""
    close = margins <= _ROUNDINGS * UNIT_ROUNDOFF[precision]
    turned = margins <= _EQUAL if precision == "fp32" else close
    share = close.cumsum() / np.arange(1, len(close) + 1)
    return ~close & (share <= _SHARE) & ~np.logical_or.accumulate(turned)


def clear_keys(keys: Floats, cache: CacheInfo, precision: str) -> Floats:
    """`keys` [1,H,P,D] with a clear choice for the query that follows.

    Of the candidates that share a position `topk` stand along one direction, as many against it:
    every head reads the ones or the others. Other candidates' representatives are about 0.
    """
    rule, sinks = cache.parameters, cache.sinks
    if not isinstance(rule, Landmark):
        return keys
    candidates = max(0, keys.shape[2] + 1 - sinks - cache.window) // rule.block
    far = candidates - rule.topk - 1
    if far < 2 * rule.topk:
        return keys
    generator = np.random.default_rng(_SEED)
    spread = np.sqrt(np.square(keys).mean(axis=2, keepdims=True))
    direction = spread * generator.choice(np.array([-1, 1], np.float32), spread.shape)
    size = np.zeros(candidates, np.float32)
    # Apart from each other, because a block that becomes a candidate may take one's place.
    steps = np.linspace(1, 1.5, rule.topk, dtype=np.float32)
    size[generator.permutation(far)[: 2 * rule.topk]] = np.concatenate([steps, -steps])
    stand = size[:, None] * direction  # [1,H,n,D]
    moved = keys.copy()
    end = sinks + candidates * rule.block
    blocks = keys[:, :, sinks:end].reshape(*stand.shape[:3], rule.block, -1)
    if rule.token is None:
        blocks = blocks + (stand - blocks.mean(axis=3))[:, :, :, None]
        moved[:, :, sinks:end] = blocks.reshape(*keys.shape[:2], -1, keys.shape[3])
    else:
        moved[:, :, sinks + rule.block - 1 : end : rule.block] = stand
    return round_to(moved, precision)
