"""Synthetic caches: the same seeded keys and values for the package and for PyTorch.

Computing 131072 real keys takes a full prefill; a probe only needs both sides to see the same
ones. Their spread per channel is that of the model's own keys and values, so that the attention
of the tokens that follow is as sharp as the model's and depends on their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CALIBRATION_TOKENS = 64
_SEED = 20240229


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Keys, as the model or the package stores them, and values: [1,Hkv,P,D] per layer."""

    keys: tuple[Floats, ...]
    values: tuple[Floats, ...]
    seen: int | None = None  # tokens that the sequence had, where a layer holds fewer

    @property
    def length(self) -> int:
        return int(self.keys[0].shape[2]) if self.seen is None else self.seen

    def first(self, tokens: int) -> Cache:
        """The first `tokens` of it, without a copy."""
        return Cache(
            keys=tuple(key[:, :, :tokens] for key in self.keys),
            values=tuple(value[:, :, :tokens] for value in self.values),
        )


def synthetic_cache(sample: Cache, length: int | Sequence[int], precision: str) -> Cache:
    """Normally distributed keys and values of `length` tokens, one number or one per layer, with
    the spread of `sample`.

    They are numbers of `precision`, so that either side stores them without rounding.
    """
    generator = np.random.default_rng(_SEED)
    lengths = [length] * len(sample.keys) if isinstance(length, int) else length

    def like(arrays: Sequence[Floats]) -> tuple[Floats, ...]:
        return tuple(
            _like(array, tokens, precision, generator)
            for array, tokens in zip(arrays, lengths, strict=True)
        )

    return Cache(keys=like(sample.keys), values=like(sample.values))


def cache_bytes(layers: int, kv_heads: int, head_dim: int, length: int) -> int:
    """Memory of one synthetic cache, float32."""
    return 2 * layers * kv_heads * head_dim * length * 4


def round_to(values: Floats, precision: str) -> Floats:
    """`values` rounded to the numbers that `precision` has, still float32."""
    if precision == "fp32":
        return values
    import ml_dtypes

    kind = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}[precision]
    return values.astype(kind).astype(np.float32)


def _like(sample: Floats, length: int, precision: str, generator: np.random.Generator) -> Floats:
    """[1,H,length,D] with the root mean square per head and channel of `sample` [B,H,N,D]."""
    spread = np.sqrt(np.mean(np.square(sample, dtype=np.float64), axis=(0, 2)))
    _, heads, _, dim = sample.shape
    drawn = generator.standard_normal((1, heads, length, dim), dtype=np.float32)
    drawn *= spread.astype(np.float32)[None, :, None, :]
    return round_to(drawn, precision)
