"""Quantised caches in PyTorch: what a package of such a cache reads back of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.cache_type import INT8, CacheType, LayerScales, cache_type
from ctx_export.core.manifest import Manifest
from ctx_export.frontends.attention_backend import (
    attention_backend,
    attention_function,
    attention_module,
    check_replaceable,
)
from ctx_export.validate.synthetic import Cache
from ctx_export.validate.turning import Floats, Heads, Ints

IMPLEMENTATION = "ctx_quantised"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turning:
    """How keys are turned before they are cached: by a table at the positions `tokens` [N], and
    what a low precision stores of the result."""

    heads: Heads
    table: tuple[NDArray[np.float64], float]  # inv_freq [F] and the multiplier
    tokens: Ints
    rounded: Callable[[Any], Any] = lambda x: x


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheNumbers:
    """The numbers that one layer's cache can hold; `rotated`: its keys are rotated before."""

    kind: CacheType
    scales: LayerScales
    rotated: bool

    def keys(self, x: Any) -> Any:
        """Keys [...,Hkv,N,D] as they are read back, float32."""
        return self._rounded(x, self.scales.key)

    def values(self, x: Any) -> Any:
        """Values, likewise."""
        return self._rounded(x, self.scales.value)

    def turned_keys(self, x: Any, turning: Turning) -> Any:
        """Unrotated keys [...,Hkv,N,D] as they are read back, unrotated again, float64 where that
        takes turning: a cache of rotated keys rounds them at their own positions."""
        if not self.rotated:
            return self.keys(x)
        heads = turning.heads
        turn = heads.factors(turning.table, turning.tokens)
        turned = turning.rounded(heads.merged(heads.pairs(x) * turn))
        return heads.merged(heads.pairs(self.keys(turned)) / turn)

    def _rounded(self, x: Any, scales: tuple[float, ...]) -> Any:
        import torch

        scale = torch.tensor(scales, dtype=torch.float32)[:, None, None]
        numbers = (x.float() / scale).clamp(-self.kind.largest, self.kind.largest)
        if self.kind is INT8:
            return numbers.round() * scale
        return numbers.to(torch.float8_e4m3fn).float() * scale


def cache_numbers(manifest: Manifest) -> tuple[CacheNumbers, ...] | None:
    """Per layer; None where the package's cache is not quantised."""
    kind, scales = cache_type(manifest.cache_dtype), manifest.cache_scales
    if kind is None or scales is None:
        return None
    return tuple(
        CacheNumbers(kind=kind, scales=own, rotated=cache.keys == "rotated")
        for own, cache in zip(scales, manifest.layers, strict=True)
    )


def as_held(cache: Cache, numbers: Sequence[CacheNumbers]) -> Cache:
    """`cache`, keys as they are stored, rounded to numbers that a quantised cache holds."""
    import torch

    def kept(arrays: Sequence[Floats], part: str) -> tuple[Floats, ...]:
        return tuple(
            getattr(own, part)(torch.from_numpy(array)).numpy()
            for own, array in zip(numbers, arrays, strict=True)
        )

    return Cache(
        keys=kept(cache.keys, "keys"), values=kept(cache.values, "values"), seen=cache.seen
    )


def install(model: Any, layers: Iterable[Any], numbers: Iterable[CacheNumbers] | None) -> None:
    """Make transformers' own attention of every layer read back what its cache can hold; None:
    leave it as it is."""
    if numbers is None:
        model.config._attn_implementation = attention_backend(model.config)
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    check_replaceable(model)
    mask = ALL_MASK_ATTENTION_FUNCTIONS[attention_backend(model.config)]
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, mask)
    model.config._attn_implementation = IMPLEMENTATION
    for layer, own in zip(layers, numbers, strict=True):
        attention_module(layer).cache_numbers = own


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any
) -> tuple[Any, Any]:
    """transformers' attention interface: heads [B,H,N,D] in."""
    numbers: CacheNumbers = module.cache_numbers
    key = numbers.keys(key).to(query.dtype)
    value = numbers.values(value).to(query.dtype)
    plain = attention_function(module)
    result: tuple[Any, Any] = plain(module, query, key, value, mask, **options)
    return result
