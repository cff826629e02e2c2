"""Random calls of the attentions whose queries see keys in parts, how the host library runs them,
and PyTorch's own error."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctx_export.ops import reference_far
from ctx_export.ops.reference_far import FarCase
from tests.kernels.far_cases import far_call
from tests.kernels.kernel_library import (
    DTYPES,
    Call,
    DualChunkParams,
    KernelLibrary,
    MemoryParams,
    SelfExtendParams,
)
from tests.support.far_calls import FarRule

PARAMS = {"self_extend": SelfExtendParams, "dual_chunk": DualChunkParams, "memory": MemoryParams}
FUNCTIONS = {
    "self_extend": "ctxSelfExtendAttention",
    "dual_chunk": "ctxDualChunkAttention",
    "memory": "ctxMemoryAttention",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A rule, sizes and attributes of a call; one entry of `seen` and `new` per sequence."""

    rule: FarRule  # rule.rows is the most rows of a call, for which memory's caches are sized
    seen: tuple[int, ...]
    new: tuple[int, ...]
    rows: int
    capacity: int = 0  # 0: what the longest sequence needs
    dim: int = 32
    kv_heads: int = 1
    groups: int = 1
    softcap: float = 0.0
    head_sink: bool = False
    rotary_dim: int | None = None  # None: dim
    interleaved: bool = False
    frequency_batch: int = 1
    dtype: str = "float32"
    seed: int = 0

    def slots(self) -> int:
        longest = max(seen + new for seen, new in zip(self.seen, self.new, strict=True))
        return self.capacity or self.rule.capacity(longest)


def make_case(shape: Shape) -> FarCase:
    """Random values rounded to the dtype. What no query may read is NaN: empty slots, padding."""
    rng = np.random.default_rng(shape.seed)
    batch, element = len(shape.seen), DTYPES[shape.dtype][1]
    heads, capacity = shape.kv_heads * shape.groups, shape.slots()
    rotary_dim = shape.dim if shape.rotary_dim is None else shape.rotary_dim

    def normal(*size: int) -> NDArray[np.float64]:
        return rng.standard_normal(size).astype(element).astype(np.float64)

    q = normal(batch, heads, shape.rows, shape.dim)
    k, v = (normal(batch, shape.kv_heads, shape.rows, shape.dim) for _ in range(2))
    past_key, past_value = (normal(batch, shape.kv_heads, capacity, shape.dim) for _ in range(2))
    for b, (seen, new) in enumerate(zip(shape.seen, shape.new, strict=True)):
        for rows in (q, k, v):
            rows[b, :, new:] = np.nan
        filled = filled_slots(shape, seen)
        for cache in (past_key, past_value):
            cache[b, :, [slot for slot in range(capacity) if slot not in filled]] = np.nan
    frequency = 10000.0 ** (-np.arange(rotary_dim // 2) / max(1, rotary_dim // 2))
    steps = 1.0 + 0.25 * np.arange(shape.frequency_batch)
    tables = (frequency / steps[:, None]).astype(np.float32).astype(np.float64)
    return shape.rule.case(
        q=q,
        k=k,
        v=v,
        past_key=past_key,
        past_value=past_value,
        seen=np.array(shape.seen, np.int64),
        new=np.array(shape.new, np.int64),
        scale=float(np.float32(shape.dim**-0.5)),
        softcap=shape.softcap,
        inv_freq=tables if rotary_dim else None,
        multiplier=0.75 + 0.25 * np.arange(shape.frequency_batch) if rotary_dim else None,
        head_sink=rng.standard_normal(heads).astype(np.float32) if shape.head_sink else None,
        rotary_dim=rotary_dim,
        interleaved=shape.interleaved,
        element=element,
        **shape.rule.near,
        **shape.rule.numbers,
    )


def filled_slots(shape: Shape, seen: int) -> set[int]:
    """Slots that `seen` tokens, fed in order, have left numbers in."""
    if shape.rule.name != "memory":
        return set(range(seen))
    sinks, window = shape.rule.near["sinks"], shape.rule.near["window"]
    block, memory_slots = (shape.rule.numbers[name] for name in ("block", "memory_slots"))
    ring = shape.slots() - sinks - memory_slots
    means = max(0, seen - sinks - window) // block
    return {
        *range(min(seen, sinks)),
        *(sinks + m % memory_slots for m in range(means)),
        *(sinks + memory_slots + t % ring for t in range(max(0, seen - sinks))),
    }


def prepare(rule: FarRule, case: FarCase, dtype: str, *, alias: bool) -> Call:
    """The C call of a case; with `alias`, present is past's memory."""
    struct = PARAMS[rule.name]
    numbers = {**rule.near, **rule.numbers}
    if rule.name == "memory":
        numbers["memorySlots"] = numbers.pop("memory_slots")
    return far_call(struct(size=ctypes.sizeof(struct), **numbers), case, dtype, alias=alias)


def run_case(
    library: KernelLibrary,
    rule: FarRule,
    case: FarCase,
    dtype: str,
    *,
    alias: bool = False,
    workspace: bool = False,
) -> tuple[Any, Any, Any]:
    """(y, present_key, present_value) in the dtype; with `workspace`, keys may be split."""
    call = prepare(rule, case, dtype, alias=alias)
    written = ("output", "presentKey", "presentValue")
    past = ("pastKey", "pastValue") if alias else ()
    library.run(FUNCTIONS[rule.name], call, (*written, *past), workspace=workspace)
    return tuple(call.buffers[name].values for name in written)


def torch_attention(rule: FarRule, case: FarCase, dtype: str) -> NDArray[np.float64]:
    """y of a call of [batch, head, token, dim] in PyTorch at the dtype: products, the softmax and
    the weighted sum round to it; turned queries and keys are rounded once."""
    lists = getattr(reference_far, f"{rule.name}_rule")(case)
    present = reference_far.present_of(case, lists)
    y = np.zeros(case.q.shape)
    for b, row, query in reference_far._queries(case):
        if lists.slot(query) >= case.past_key.shape[2]:
            continue
        q, keys, values = reference_far._read(case, present, b, row)
        at_q, at_k, slots = np.array(lists.met(query), np.int64).T
        rows = np.repeat(q[:, None], len(slots), axis=1)
        turned_q = _tensor(reference_far._turned(case, b, rows, at_q), dtype)
        turned_k = _tensor(reference_far._turned(case, b, keys[:, slots], at_k), dtype)
        logits = torch.einsum("hnd,hnd->hn", turned_q, turned_k) * case.scale
        if case.softcap:
            logits = torch.tanh(logits / case.softcap) * case.softcap
        if case.head_sink is not None:
            logits = torch.cat([logits, _tensor(case.head_sink, dtype)[:, None]], dim=1)
        weights = logits.softmax(-1)[:, : len(slots)]
        summed = torch.einsum("hn,hnd->hd", weights, _tensor(values[:, slots], dtype))
        y[b, :, row] = summed.double().numpy()
    return y


def _tensor(values: Any, dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float64)).to(getattr(torch, dtype))
