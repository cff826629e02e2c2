"""Bytes of key-value caches, exactly those that a session allocates for a package's plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from ctx_export.core.cache_type import ELEMENT_BYTES
from ctx_export.core.manifest import BOUNDED, CacheInfo
from ctx_export.core.plan import Plan
from ctx_export.core.rules import Landmark


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKind:
    """Layers with the same cache. Bytes are of keys and values together."""

    cache: CacheInfo
    layers: int  # how many there are
    kv_heads: int
    head_dim: int
    dtype: str

    @property
    def slot_bytes(self) -> int:
        """Of one slot in one layer."""
        return 2 * self.kv_heads * self.head_dim * ELEMENT_BYTES[self.dtype]

    @property
    def sequence_bytes(self) -> int:
        """Of one sequence in all these layers, at capacity."""
        return self.layers * self.slot_bytes * self.cache.capacity

    @property
    def token_bytes(self) -> Fraction:
        """By which one more token makes a growing cache larger, in all these layers: 0 for one of
        fixed size. landmark has a slot or a token more for every block."""
        if self.cache.policy == BOUNDED:
            return Fraction(0)
        rule, slots = self.cache.parameters, Fraction(1)
        if isinstance(rule, Landmark):
            blocks = (rule.block, rule.block - 1) if rule.token is not None else None
            slots = Fraction(*blocks) if blocks else Fraction(rule.block + 1, rule.block)
        return slots * self.layers * self.slot_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCache:
    """The caches of a package."""

    kinds: tuple[CacheKind, ...]
    dtype: str

    @property
    def token_bytes(self) -> Fraction:
        """By which one more token of one sequence makes the caches larger."""
        return sum((kind.token_bytes for kind in self.kinds), Fraction(0))

    @property
    def sequence_bytes(self) -> int:
        """Of one sequence at capacity."""
        return sum(kind.sequence_bytes for kind in self.kinds)

    @property
    def largest_growing(self) -> int:
        """The largest key or value tensor of one sequence that grows: while it does, the session
        holds it twice, one tensor at a time."""
        growing = (kind for kind in self.kinds if kind.cache.policy != BOUNDED)
        return max((k.slot_bytes * k.cache.capacity // 2 for k in growing), default=0)


def kv_cache(plan: Plan) -> KvCache:
    """The caches of `plan`, layers of one kind together, in the order of their first layer."""
    counts = Counter(plan.caches)
    kinds = tuple(
        CacheKind(
            cache=cache,
            layers=count,
            kv_heads=plan.spec.kv_heads,
            head_dim=plan.spec.head_dim,
            dtype=plan.cache_dtype,
        )
        for cache, count in counts.items()
    )
    return KvCache(kinds=kinds, dtype=plan.cache_dtype)
