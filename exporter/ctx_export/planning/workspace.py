"""Workspace of the plugin layers: what their getWorkspaceSize asks TensorRT for.

The same formulas as the kernels' (sink_window_attention_split.cu, landmark_attention.cu), at the
largest shapes of the engine's profiles: max_batch sequences, max_chunk tokens, all slots.
"""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.rules import Landmark

_MAX_SPLITS = 128
_MIN_SPLIT_KEYS = 256
_MAX_PARTIAL_ROWS = 32768
_FLOAT = 4  # bytes
_STATE = 8  # of a split's softmax: maximum and denominator
_SECTION = 128 << 20  # bytes that a landmark call's section of tokens may take
_ROWS = 16  # packed query rows whose blocks are listed together
_CHOSEN, _LIST_SIZE = 8, 8  # bytes of an entry of a list of blocks, and of a list's size
_ALIGNMENT = 15
_MAX_SIZE = 2**31 - 1
_MAX_ELEMENTS = 1 << 37


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShape:
    """The largest call of a plugin layer."""

    batch: int
    rows: int  # tokens of a sequence
    heads: int
    kv_heads: int
    head_dim: int

    def fits(self, capacity: int) -> bool:
        """Whether the kernels take caches of `capacity` slots at these sizes."""
        keys = (self.batch, self.kv_heads, capacity, self.head_dim)
        return self.has_queries and _are_sizes(keys)

    @property
    def has_queries(self) -> bool:
        """Whether the kernels take queries of these sizes."""
        return _are_sizes((self.batch, self.heads, self.rows, self.head_dim))


def workspace_bytes(cache: CacheInfo, call: CallShape) -> int:
    """Bytes that the plugin of a layer with that cache asks for; 0 where it asks for none, which
    includes sizes out of range."""
    if isinstance(cache.parameters, Landmark):
        fits = call.fits(cache.capacity)
        return _landmark(cache, cache.parameters, call) if fits else 0
    if not call.has_queries or cache.capacity > _MAX_SIZE:
        return 0
    # The other rules that reach behind a window ask for what a full cache would need.
    own = cache.parameters is None
    window = cache.window if own else 0
    return _splits(call, cache.capacity, cache.sinks if own else 0, window)


def _splits(call: CallShape, capacity: int, sinks: int, window: int) -> int:
    """For the results of keys that are split over blocks: sums of values and softmax states."""
    reach = capacity
    if window:
        reach = min(capacity, min(sinks, capacity) + min(window, capacity) + call.rows)
    splits = max(1, min(_MAX_SPLITS, reach // _MIN_SPLIT_KEYS))
    if splits == 1:
        return 0
    rows = min(_MAX_PARTIAL_ROWS, call.batch * call.heads * call.rows * splits)
    return rows * (call.head_dim * _FLOAT + _STATE)


def _landmark(cache: CacheInfo, rule: Landmark, call: CallShape) -> int:
    """A section of tokens with their scores and chosen blocks, and splits of what they read."""
    groups = call.heads // call.kv_heads
    grouped = rule.token is not None
    stride = rule.block + (0 if grouped else 1)
    sinks = min(cache.sinks, cache.capacity)
    blocks, rest = divmod(cache.capacity - sinks, stride)
    tokens = sinks + blocks * rule.block + min(rest, rule.block)
    choices = min(_ROWS, call.rows * (1 if rule.shared else groups))
    chosen = min(blocks, rule.topk * choices)
    window = min(_MAX_SIZE, chosen * rule.block) + min(_MAX_SIZE, cache.window) + rule.block
    one = call.batch * call.kv_heads * _section(cache, rule, blocks, groups)
    section = min(one * call.rows, max(one, _SECTION))
    return section + _ALIGNMENT + _splits(call, tokens, sinks, window)


def _section(cache: CacheInfo, rule: Landmark, blocks: int, groups: int) -> int:
    """Bytes that one token of one KV head takes."""
    grouped = rule.token is not None
    scores = (1 if rule.shared else groups) * (-(-blocks // 4) * 4)
    tiles = -(-groups // _ROWS)
    beside = min(blocks, (min(cache.window, _MAX_SIZE) + _ROWS) // rule.block + 2)
    entries = groups * min(rule.topk, blocks) + (tiles * beside if grouped else 0)
    biases = entries * _ROWS if grouped else 0
    return (scores + biases) * _FLOAT + entries * _CHOSEN + tiles * _LIST_SIZE


def _are_sizes(sizes: tuple[int, ...]) -> bool:
    elements = 1
    for size in sizes:
        elements *= size
    return elements <= _MAX_ELEMENTS and all(0 <= size <= _MAX_SIZE for size in sizes)
