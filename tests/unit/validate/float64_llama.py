"""A llama written out in float64 numpy: the oracle of the PyTorch reference.

Shares nothing with transformers but the checkpoint's tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ctx_export.validate.synthetic import Cache
from tests.support.tiny import HEAD_DIM, HEADS, KV_HEADS, LAYERS, THETA

Doubles = NDArray[np.float64]
EPSILON = 1e-6  # rms_norm_eps of a LlamaConfig


def plain_table(dim: int = HEAD_DIM) -> Doubles:
    """b^(−2i/d), radians per token."""
    return THETA ** (-np.arange(0, dim, 2) / dim)


@dataclass(frozen=True)
class Float64Llama:
    """Logits of tokens at `start` …, after a cache of `start` keys (rotated) and values."""

    checkpoint: Path
    inv_freq: Doubles
    multiplier: float = 1.0

    def logits(self, tokens: NDArray[np.int64], cache: Cache | None = None) -> Doubles:
        """[N,V] for tokens [N]."""
        return self._run(tokens, cache)[0]

    def cache(self, tokens: NDArray[np.int64]) -> list[tuple[Doubles, Doubles]]:
        """(keys, values) [Hkv,N,D] of every layer."""
        return self._run(tokens, None)[1]

    def _run(
        self, tokens: NDArray[np.int64], cache: Cache | None
    ) -> tuple[Doubles, list[tuple[Doubles, Doubles]]]:
        stored = load_file(self.checkpoint / "model.safetensors")
        weights = {name: array.astype(np.float64) for name, array in stored.items()}
        start = 0 if cache is None else cache.length
        positions = np.arange(start, start + len(tokens))
        x = weights["model.embed_tokens.weight"][tokens]
        kept = []
        for layer in range(LAYERS):
            w = {
                name.removeprefix(f"model.layers.{layer}."): array
                for name, array in weights.items()
            }
            h = _norm(x, w["input_layernorm.weight"])
            q, k, v = (
                _heads(h @ w[f"self_attn.{name}_proj.weight"].T, heads)
                for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
            )
            q, k = self._rotated(q, positions), self._rotated(k, positions)
            if cache is not None:
                k = np.concatenate([cache.keys[layer][0].astype(np.float64), k], axis=1)
                v = np.concatenate([cache.values[layer][0].astype(np.float64), v], axis=1)
            kept.append((k, v))
            x = x + _attend(q, k, v, positions) @ w["self_attn.o_proj.weight"].T
            h = _norm(x, w["post_attention_layernorm.weight"])
            gate, up = h @ w["mlp.gate_proj.weight"].T, h @ w["mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w["mlp.down_proj.weight"].T
        return _norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T, kept

    def _rotated(self, x: Doubles, positions: NDArray[np.int64]) -> Doubles:
        """x [H,N,D] turned by positions × inv_freq, pairs (i, i + D/2)."""
        angle = positions[:, None] * self.inv_freq
        cos, sin = np.cos(angle) * self.multiplier, np.sin(angle) * self.multiplier
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _norm(x: Doubles, weight: Doubles) -> Doubles:
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON)


def _heads(x: Doubles, heads: int) -> Doubles:
    """[N,H·D] → [H,N,D]."""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def _attend(q: Doubles, k: Doubles, v: Doubles, positions: NDArray[np.int64]) -> Doubles:
    """[N,H·D] of queries [H,N,D] that see the keys at or before their positions."""
    visible = np.arange(k.shape[1]) <= positions[:, None]
    rows = []
    for head, query in enumerate(q):
        group = head // (HEADS // KV_HEADS)
        scores = np.where(visible, query @ k[group].T / np.sqrt(HEAD_DIM), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        rows.append(weights @ v[group] / weights.sum(-1, keepdims=True))
    return np.concatenate(rows, axis=-1)
