"""Random LandmarkAttention calls, how the host library runs them, and PyTorch's own error."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ctx_export.ops import reference_far
from ctx_export.ops.reference_far import LandmarkCase, landmark_margins
from tests.kernels.far_cases import far_call
from tests.kernels.kernel_library import DTYPES, Call, KernelLibrary, LandmarkParams

# Choices are made in float32 of the tensors' own values, so that a gap of this size decides them
# whatever the tensors' type is: scores have size 1.
MARGIN = 2e-5


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes and attributes of a call; one entry of `seen` and `new` per sequence."""

    seen: tuple[int, ...]
    new: tuple[int, ...]
    rows: int
    block: int
    topk: int
    capacity: int = 0  # 0: what the longest sequence needs
    dim: int = 32
    kv_heads: int = 1
    groups: int = 1
    sinks: int = 0
    window: int = 1
    shared: bool = False
    landmark: bool = False
    softcap: float = 0.0
    head_sink: bool = False
    rotary_dim: int | None = None  # None: dim
    interleaved: bool = False
    frequency_batch: int = 1
    scale: float | None = None
    dtype: str = "float32"

    def slots(self) -> int:
        longest = max(seen + new for seen, new in zip(self.seen, self.new, strict=True))
        if self.capacity or self.landmark or longest <= self.sinks:
            return self.capacity or longest
        return self.sinks + -(-(longest - self.sinks) // self.block) * (self.block + 1)


def make_case(shape: Shape) -> LandmarkCase:
    """Of the first seed with which no choice is near a tie. What no query may read is NaN."""
    for seed in range(50):
        case = _random_case(shape, seed)
        if landmark_margins(case).min(initial=np.inf) > MARGIN:
            return case
    raise AssertionError("every seed has a choice near a tie: take fewer rows or blocks")


def _random_case(shape: Shape, seed: int) -> LandmarkCase:
    rng = np.random.default_rng(seed)
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
        tokens, means = filled_slots(shape, seen)
        for cache, slots in ((past_key, tokens | means), (past_value, tokens)):
            cache[b, :, [slot for slot in range(capacity) if slot not in slots]] = np.nan
    frequency = 10000.0 ** (-np.arange(rotary_dim // 2) / max(1, rotary_dim // 2))
    steps = 1.0 + 0.25 * np.arange(shape.frequency_batch)
    tables = (frequency / steps[:, None]).astype(np.float32).astype(np.float64)
    scale = shape.dim**-0.5 if shape.scale is None else shape.scale
    return LandmarkCase(
        q=q,
        k=k,
        v=v,
        past_key=past_key,
        past_value=past_value,
        seen=np.array(shape.seen, np.int64),
        new=np.array(shape.new, np.int64),
        sinks=shape.sinks,
        window=shape.window,
        scale=float(np.float32(scale)),
        softcap=shape.softcap,
        inv_freq=tables if rotary_dim else None,
        multiplier=0.75 + 0.25 * np.arange(shape.frequency_batch) if rotary_dim else None,
        head_sink=rng.standard_normal(heads).astype(np.float32) if shape.head_sink else None,
        rotary_dim=rotary_dim,
        interleaved=shape.interleaved,
        element=element,
        block=shape.block,
        topk=shape.topk,
        shared=shape.shared,
        landmark=shape.landmark,
    )


def filled_slots(shape: Shape, seen: int) -> tuple[set[int], set[int]]:
    """Slots of the first `seen` tokens, and of the means of the blocks that they complete."""
    if shape.landmark:
        return set(range(seen)), set()
    tokens, means = set(range(min(seen, shape.sinks))), set()
    slot = shape.sinks
    for token in range(shape.sinks, seen):
        tokens.add(slot)
        slot += 1
        if (token - shape.sinks + 1) % shape.block == 0:
            means.add(slot)
            slot += 1
    return tokens, means


def prepare(case: LandmarkCase, dtype: str, *, alias: bool) -> Call:
    """The C call of a case; with `alias`, present is past's memory."""
    params = LandmarkParams(
        size=ctypes.sizeof(LandmarkParams),
        sinks=case.sinks,
        window=case.window,
        block=case.block,
        topk=case.topk,
        shared=int(case.shared),
        landmark=int(case.landmark),
    )
    return far_call(params, case, dtype, alias=alias)


def run_case(
    library: KernelLibrary,
    case: LandmarkCase,
    dtype: str,
    *,
    alias: bool = False,
    section_tokens: int = 0,
) -> tuple[Any, Any, Any]:
    """(y, present_key, present_value) in the dtype; the workspace is what the call asks for, or
    what a call of `section_tokens` rows would."""
    call = prepare(case, dtype, alias=alias)
    written = ("output", "presentKey", "presentValue")
    past = ("pastKey", "pastValue") if alias else ()
    if section_tokens:
        rows, call.params.call.rows = call.params.call.rows, section_tokens
        size = library.workspace_bytes(call.params)
        call.params.call.rows, call.params.call.workspaceBytes = rows, size
        call.point("workspace", np.full(size, 0xFF, np.uint8))
        past += ("workspace",)
    library.run("ctxLandmarkAttention", call, (*written, *past), workspace=section_tokens == 0)
    return tuple(call.buffers[name].values for name in written)


def torch_landmark(case: LandmarkCase, dtype: str) -> NDArray[np.float64]:
    """y of a call of [batch, head, token, dim] in PyTorch at the dtype: products, weights and sums
    round to it. Choices are the reference's; turned queries and keys are rounded once."""
    present = reference_far._landmark_present(case)
    y = np.zeros(case.q.shape)
    for b, row, query in reference_far._queries(case):
        if reference_far._landmark_slot(case, query) >= case.past_key.shape[2]:
            continue
        q, keys, values = reference_far._read(case, present, b, row)
        chosen, _ = reference_far._chosen(case, b, query, q, keys)
        for head, blocks in enumerate(chosen):
            tokens, met = reference_far._landmark_met(case, query, blocks)
            at_q, at_k, slots = np.array(met, np.int64).T
            rows = np.repeat(q[[head]][:, None], len(met), axis=1)
            turned_q = _tensor(reference_far._turned(case, b, rows, at_q)[0], dtype)
            turned_k = reference_far._turned(case, b, keys[[head]][:, slots], at_k)[0]
            logits = torch.einsum("nd,nd->n", turned_q, _tensor(turned_k, dtype)) * case.scale
            if case.softcap:
                logits = torch.tanh(logits / case.softcap) * case.softcap
            exact = logits.double().numpy()
            if case.landmark:
                weights = reference_far._grouped(case, query, tokens, exact)
            else:
                sink = None if case.head_sink is None else case.head_sink[head]
                weights = reference_far._softmax(exact, sink)
            value = _tensor(values[head, slots], dtype)
            y[b, head, row] = (_tensor(weights, dtype) @ value).double().numpy()
    return y


def _tensor(values: Any, dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float64)).to(getattr(torch, dtype))
