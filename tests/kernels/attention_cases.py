"""Random SinkWindowAttention calls, and how the host library runs them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.ops.reference import AttentionCase, slot_of
from ctx_export.ops.spec import Layout, Rotation
from tests.kernels.kernel_library import (
    DTYPES,
    AttentionParams,
    Call,
    KernelLibrary,
    Strides,
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes and attributes of a call; one entry of `seen` and `new` per sequence."""

    seen: tuple[int, ...]
    new: tuple[int, ...]
    rows: int
    capacity: int
    dim: int = 64
    kv_heads: int = 1
    groups: int = 1
    sinks: int = 0
    window: int = 0
    bounded: bool = False
    softcap: float = 0.0
    sink_q: bool = False
    head_sink: bool = False
    rotary_dim: int = 0
    rotation: Rotation = Rotation.KEYS_ON_READ
    sink_position: int = 0
    interleaved: bool = False
    frequency_batch: int = 1
    dtype: str = "float32"
    seed: int = 0


def make_case(shape: Shape) -> AttentionCase:
    """Random values rounded to the dtype. What no query may read is NaN: empty slots, padding."""
    rng = np.random.default_rng(shape.seed)
    batch = len(shape.seen)
    element = DTYPES[shape.dtype][1]

    def normal(*size: int) -> NDArray[np.float64]:
        return rng.standard_normal(size).astype(element).astype(np.float64)

    heads = shape.kv_heads * shape.groups
    q, sink_q = (normal(batch, heads, shape.rows, shape.dim) for _ in range(2))
    k, v = (normal(batch, shape.kv_heads, shape.rows, shape.dim) for _ in range(2))
    past_key, past_value = (
        normal(batch, shape.kv_heads, shape.capacity, shape.dim) for _ in range(2)
    )
    for b, (seen, new) in enumerate(zip(shape.seen, shape.new, strict=True)):
        for rows in (q, sink_q, k, v):
            rows[b, :, new:] = np.nan
        layout = {"sinks": shape.sinks, "capacity": shape.capacity, "bounded": shape.bounded}
        filled = {slot_of(token, **layout) for token in range(seen)}
        empty = [slot for slot in range(shape.capacity) if slot not in filled]
        past_key[b, :, empty] = np.nan
        past_value[b, :, empty] = np.nan
    frequency = 10000.0 ** (-np.arange(shape.rotary_dim // 2) / max(1, shape.rotary_dim // 2))
    steps = 1.0 + 0.25 * np.arange(shape.frequency_batch)
    tables = (frequency / steps[:, None]).astype(np.float32).astype(np.float64)
    return AttentionCase(
        q=q,
        k=k,
        v=v,
        past_key=past_key,
        past_value=past_value,
        seen=np.array(shape.seen, np.int64),
        new=np.array(shape.new, np.int64),
        sinks=shape.sinks,
        window=shape.window,
        scale=float(np.float32(shape.dim**-0.5)),
        softcap=shape.softcap,
        bounded=shape.bounded,
        sink_q=sink_q if shape.sink_q else None,
        inv_freq=tables if shape.rotary_dim else None,
        multiplier=(1.0 + 0.25 * np.arange(shape.frequency_batch)) if shape.rotary_dim else None,
        head_sink=rng.standard_normal(heads).astype(np.float32) if shape.head_sink else None,
        rotary_dim=shape.rotary_dim,
        rotation=shape.rotation,
        sink_position=shape.sink_position,
        interleaved=shape.interleaved,
    )


def by_token(x: NDArray[Any]) -> NDArray[Any]:
    """[batch, head, token, dim] as [batch, token, head · dim]."""
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)


def laid_out(case: AttentionCase, layout: Layout) -> AttentionCase:
    """A case of [batch, head, token, dim] with q, k and v as projections write them."""
    q, k, v = (by_token(x) for x in (case.q, case.k, case.v))
    if layout == Layout.PACKED:
        q = k = v = np.concatenate([q, k, v], axis=2)
    return replace(case, q=q, k=k, v=v, layout=layout)


def prepare(case: AttentionCase, dtype: str, *, alias: bool) -> Call:
    """The C call of a case; with `alias`, present is past's memory."""
    code, element = DTYPES[dtype]
    _, kv_heads, capacity, dim = case.past_key.shape
    output = output_shape(case)
    by_head = case.layout == Layout.HEAD_MAJOR
    batch, rows = output[0], output[2 if by_head else 1]
    heads = output[1] if by_head else output[2] // dim
    params = AttentionParams(
        size=ctypes.sizeof(AttentionParams),
        batch=batch,
        queryHeads=heads,
        kvHeads=kv_heads,
        rows=rows,
        capacity=capacity,
        headDim=dim,
        sinks=case.sinks,
        window=case.window,
        rotaryDim=case.rotary_dim,
        frequencyBatch=1 if case.inv_freq is None else len(case.inv_freq),
        multiplierBatch=1 if case.multiplier is None else len(case.multiplier),
        scale=case.scale,
        softcap=case.softcap,
        bounded=int(case.bounded),
        interleaved=int(case.interleaved),
        rotation=int(case.rotation),
        sinkPosition=case.sink_position,
        dataType=code,
    )
    call = Call(params)

    def cast(values: Any, kind: Any = element) -> Any:
        return None if values is None else np.asarray(values).astype(kind)

    tensors = {"query": case.q, "sinkQuery": case.sink_q}
    if case.layout != Layout.PACKED:
        tensors |= {"key": case.k, "value": case.v}
    for name, values in {
        **tensors,
        "pastKey": case.past_key,
        "pastValue": case.past_value,
    }.items():
        call.point(name, cast(values))
    call.point("seen", case.seen)
    call.point("newTokens", case.new)
    call.point("inverseFrequency", cast(case.inv_freq, np.float32))
    call.point("multiplier", cast(case.multiplier, np.float32))
    call.point("headSink", cast(case.head_sink, np.float32))
    call.point("output", np.full(output, -7.0, element))
    if not by_head:
        tokens = {"query": case.q, "key": case.k, "value": case.v}
        widths = {name: x.shape[2] for name, x in tokens.items()}
        for name, width in {**widths, "output": output[2]}.items():
            setattr(params, f"{name}Strides", Strides(rows * width, dim, width))
    if case.layout == Layout.PACKED:
        params.key = params.query + heads * dim * element.itemsize
        params.value = params.key + kv_heads * dim * element.itemsize
    for name, past in (("presentKey", "pastKey"), ("presentValue", "pastValue")):
        if alias:
            setattr(params, name, call.buffers[past].pointer)
            call.buffers[name] = call.buffers[past]
        else:
            call.point(name, np.full(call.buffers[past].shape, -7.0, element))
    return call


def output_shape(case: AttentionCase) -> tuple[int, ...]:
    """Shape of y."""
    if case.layout != Layout.PACKED:
        return case.q.shape
    _, kv_heads, _, dim = case.past_key.shape
    return (*case.q.shape[:2], case.q.shape[2] - 2 * kv_heads * dim)


def run_case(
    library: KernelLibrary,
    case: AttentionCase,
    dtype: str,
    *,
    alias: bool = False,
    workspace: bool = False,
) -> tuple[Any, Any, Any]:
    """(y, present_key, present_value) in the dtype; with `workspace`, keys may be split."""
    call = prepare(case, dtype, alias=alias)
    written = (
        "output",
        "presentKey",
        "presentValue",
        *(["pastKey", "pastValue"] if alias else []),
    )
    library.run("ctxSinkWindowAttention", call, written, workspace=workspace)
    return tuple(call.buffers[name].values for name in ("output", "presentKey", "presentValue"))
