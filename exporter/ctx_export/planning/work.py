"""Operations and bytes of reading a text and of one decoded token.

A weight matrix costs 2 operations a number and token, attention 4·head_dim a pair and query head
(FORMULAS section 4) and 2·head_dim a scored representative. Bytes are the least that has to move:
the weights once a call, and once a call the keys and values that its last query meets.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.plan import Plan
from ctx_export.core.rules import Landmark
from ctx_export.planning.kv_cache import CacheKind, KvCache
from ctx_export.planning.parameters import Parameters
from ctx_export.planning.seen import Met, Queries, met
from ctx_export.planning.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Of the weight matrices with all experts, as packages compute them, and with the chosen ones
    alone; and of attention."""

    matrices: int
    active_matrices: int
    attention: int

    @property
    def total(self) -> int:
        return self.matrices + self.attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """Reading one sequence of `tokens` tokens for the logits of its last one."""

    tokens: int
    calls: int
    pairs: int  # of a query and a key that it meets, in all layers
    operations: Operations
    weight_bytes: int
    cache_bytes: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """One step of `batch` sequences of `tokens` tokens each: the last token of every one."""

    tokens: int
    batch: int
    operations: Operations
    weight_bytes: int
    active_weight_bytes: int  # with the chosen experts alone
    cache_bytes: int
    # landmark: where the heads of a KV head all choose other blocks; elsewhere the same.
    most_cache_bytes: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes


def prefill(
    plan: Plan, kv: KvCache, parameters: Parameters, weights: Weights, tokens: int
) -> Prefill:
    """What a package of `plan` does to read `tokens` tokens in calls of its max_chunk."""
    fed = max(_fed(kind.cache, tokens) for kind in kv.kinds)
    calls = -(-fed // plan.max_chunk)
    met_in = {kind: met(kind.cache, Queries.every(_fed(kind.cache, tokens))) for kind in kv.kinds}
    moved = sum(
        _moved(kind, _met_by_calls(kind.cache, _fed(kind.cache, tokens), plan.max_chunk))
        + kind.layers * kind.slot_bytes * _fed(kind.cache, tokens)
        for kind in kv.kinds
    )
    return Prefill(
        tokens=tokens,
        calls=calls,
        pairs=sum(kind.layers * found.pairs for kind, found in met_in.items()),
        operations=_operations(plan, parameters, met_in, fed),
        weight_bytes=calls * weights.read,
        cache_bytes=moved,
    )


def decode(
    plan: Plan, kv: KvCache, parameters: Parameters, weights: Weights, tokens: int
) -> Decode:
    """What a step of max_batch sequences does whose new token is their `tokens`-th."""
    last = {
        kind: met(kind.cache, Queries(first=_fed(kind.cache, tokens) - 1)) for kind in kv.kinds
    }
    batch = plan.max_batch
    each = _operations(plan, parameters, last, 1)
    groups = plan.spec.heads // plan.spec.kv_heads
    return Decode(
        tokens=tokens,
        batch=batch,
        operations=Operations(
            matrices=batch * each.matrices,
            active_matrices=batch * each.active_matrices,
            attention=batch * each.attention,
        ),
        weight_bytes=weights.read,
        active_weight_bytes=weights.read_active,
        cache_bytes=batch * sum(_moved(kind, found) for kind, found in last.items()),
        most_cache_bytes=batch
        * sum(_moved(kind, _most(kind.cache, found, groups)) for kind, found in last.items()),
    )


def _fed(cache: CacheInfo, tokens: int) -> int:
    """Tokens that the model gets for a text of `tokens`, landmark tokens among them."""
    rule = cache.parameters
    return rule.fed(cache.sinks, tokens) if isinstance(rule, Landmark) else tokens


def _met_by_calls(cache: CacheInfo, fed: int, chunk: int) -> Met:
    """What the last query of every call meets."""
    found = met(cache, Queries.last_of_calls(fed, chunk))
    return found if fed % chunk == 0 else found + met(cache, Queries(first=fed - 1))


def _moved(kind: CacheKind, found: Met) -> int:
    """Bytes of keys and values that are met, and of keys that are scored, in all layers."""
    return kind.layers * (kind.slot_bytes * found.pairs + kind.slot_bytes // 2 * found.scored)


def _most(cache: CacheInfo, found: Met, groups: int) -> Met:
    """What all heads of a KV head meet at most, where each chooses blocks of its own."""
    rule = cache.parameters
    if not isinstance(rule, Landmark) or rule.shared:
        return found
    more = min(found.scored, rule.topk * groups) - min(found.scored, rule.topk)
    return Met(pairs=found.pairs + rule.block * more, scored=found.scored)


def _operations(
    plan: Plan, parameters: Parameters, found: dict[CacheKind, Met], tokens: int
) -> Operations:
    """Of `tokens` tokens that meet `found`, with the logits of the last one."""
    width = plan.spec.heads * plan.spec.head_dim
    pairs = sum(kind.layers * (2 * met.pairs + met.scored) for kind, met in found.items())
    return Operations(
        matrices=2 * (parameters.matrices * tokens + parameters.output),
        active_matrices=2 * (parameters.active_matrices * tokens + parameters.output),
        attention=2 * width * pairs,
    )
