"""Streaming decode: one token through sinks and a ring, at positions near and far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tools.gpu.check import MOST_SEQUENCES, Expected, attend, expectation, sample
from tools.gpu.compare import Bench, Prepared, Task, compare
from tools.gpu.counts import cache_bytes
from tools.gpu.ours import Attention
from tools.gpu.part import KV_HEADS, OURS, QUERY_HEADS, SINKS, WINDOW, Draw, Part, size_text

if TYPE_CHECKING:
    from torch import Tensor

_PART = "streaming"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingCase:
    """One token at `position`, past the sinks and the window; `chunk` tokens may come at once."""

    position: int
    batch: int
    head_dim: int = 128
    query_heads: int = QUERY_HEADS
    kv_heads: int = KV_HEADS
    sinks: int = SINKS
    window: int = WINDOW
    chunk: int = 16
    sides: tuple[str, ...] = (OURS,)

    @property
    def label(self) -> str:
        return f"position {size_text(self.position)} batch {self.batch}"

    @property
    def capacity(self) -> int:
        return self.sinks + self.window + self.chunk - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Keys and values [B,Hkv,C,D], a query for the ring and one for the sinks [B,Hq,1,D]."""

    key: Tensor
    value: Tensor
    query: Tensor
    sink_query: Tensor


def run(bench: Bench, cases: Sequence[StreamingCase]) -> None:
    for case in cases:
        slots = case.sinks + case.window
        element_bytes = 4 if bench.dtype == "float32" else 2
        amount = case.batch * cache_bytes(
            slots, head_dim=case.head_dim, kv_heads=case.kv_heads, element_bytes=element_bytes
        )
        task = Task(part=_PART, case=case.label, amount=amount, unit="GB/s", cold=True)
        compare(bench, task, {OURS: partial(_prepare, bench, case)})


def _prepare(bench: Bench, case: StreamingCase) -> Prepared:
    draw = Draw(bench)
    cache_shape = (case.batch, case.kv_heads, case.capacity, case.head_dim)
    query_shape = (case.batch, case.query_heads, 1, case.head_dim)
    cache = Cache(
        key=draw.normal(*cache_shape),
        value=draw.normal(*cache_shape),
        query=draw.normal(*query_shape),
        sink_query=draw.normal(*query_shape),
    )
    slot = slot_of(case.position, case)
    expected = expect(cache, case)
    key, value = (x[:, :, slot : slot + 1].contiguous() for x in (cache.key, cache.value))
    for x in (cache.key, cache.value):
        x[:, :, slot] = float("nan")  # the call has to write it
    call = Attention(
        query=cache.query,
        key=key,
        value=value,
        key_cache=cache.key,
        value_cache=cache.value,
        seen=draw.integers([case.position] * case.batch),
        new=draw.integers([1] * case.batch),
        output=draw.poisoned(*query_shape),
        sinks=case.sinks,
        window=case.window,
        bounded=True,
        sink_query=cache.sink_query,
    )
    return Prepared(run=call.bind(bench.kernels), output=lambda _: call.output, expected=expected)


def slot_of(token: int, case: StreamingCase) -> int:
    """Sinks first, then a ring of the tokens from there on."""
    ring = case.capacity - case.sinks
    return token if token < case.sinks else case.sinks + (token - case.sinks) % ring


def expect(cache: Cache, case: StreamingCase) -> Expected:
    """Sinks are met by the sink query, the window's slots by the other; the rest is unseen."""
    import torch

    window = [
        slot_of(token, case) for token in range(case.position - case.window + 1, case.position + 1)
    ]
    slots = torch.tensor([*range(case.sinks), *window], device=cache.key.device)
    sequences = sample(case.batch, MOST_SEQUENCES)
    pairs = []
    for b in sequences:
        tensors = [x[b] for x in (cache.query, cache.sink_query)]
        tensors += [x[b][:, slots] for x in (cache.key, cache.value)]
        exact = _answer([x.float() for x in tensors], case)
        pairs.append((exact, _answer(tensors, case)))
    return expectation(sequences, [0], pairs, cache.query)


def _answer(tensors: list[Tensor], case: StreamingCase) -> Tensor:
    """One softmax over both queries' logits: a query [q, sink q] of twice the dimension meets keys
    that are zero in the half which is not theirs."""
    import torch

    query, sink_query, key, value = tensors
    nothing = torch.zeros_like(key)
    is_sink = torch.arange(key.shape[1], device=key.device)[:, None] < case.sinks
    both = torch.cat([torch.where(is_sink, nothing, key), torch.where(is_sink, key, nothing)], -1)
    visible = torch.ones(1, key.shape[1], dtype=torch.bool, device=key.device)
    scale = float(case.head_dim) ** -0.5
    return attend(torch.cat([query, sink_query], -1), both, value, visible, scale)


_POSITIONS = (2048, 100_000, 10_000_000, 1 << 33)
PART = Part(
    name=_PART,
    title=f"Streaming decode, {SINKS} sinks + {WINDOW} window, head dimension 128",
    weight=0.7,
    cases=[
        StreamingCase(position=position, batch=batch)
        for batch in (1, 32)
        for position in _POSITIONS
    ],
    quick=[StreamingCase(position=position, batch=1) for position in _POSITIONS],
    run=run,
)
