"""What calls of the attentions that look behind a window have in common for the C interface."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ctx_export.ops.reference_far import FarCase
from ctx_export.ops.spec import Layout
from tests.kernels.attention_cases import by_token, output_shape
from tests.kernels.kernel_library import DTYPES, Call, Strides

Case = TypeVar("Case", bound=FarCase)


def laid_out(case: Case, layout: Layout) -> Case:
    """A case of [batch, head, token, dim] with q, k and v as projections write them."""
    q, k, v = (by_token(x) for x in (case.q, case.k, case.v))
    if layout == Layout.PACKED:
        q = k = v = np.concatenate([q, k, v], axis=2)
    return replace(case, q=q, k=k, v=v, layout=layout)


def far_call(params: Any, case: FarCase, dtype: str, *, alias: bool) -> Call:
    """The C call of a case: an operator's struct with its own numbers in it, and the rest here.
    With `alias`, present is past's memory."""
    code, element = DTYPES[dtype]
    _, kv_heads, capacity, dim = case.past_key.shape
    output = output_shape(case)
    by_head = case.layout == Layout.HEAD_MAJOR
    batch, rows = output[0], output[2 if by_head else 1]
    heads = output[1] if by_head else output[2] // dim
    for name, value in {
        "batch": batch,
        "queryHeads": heads,
        "kvHeads": kv_heads,
        "rows": rows,
        "capacity": capacity,
        "headDim": dim,
        "rotaryDim": case.rotary_dim,
        "frequencyBatch": 1 if case.inv_freq is None else len(case.inv_freq),
        "multiplierBatch": 1 if case.multiplier is None else len(case.multiplier),
        "scale": case.scale,
        "softcap": case.softcap,
        "interleaved": int(case.interleaved),
        "dataType": code,
    }.items():
        setattr(params.call, name, value)
    call = Call(params)

    def cast(values: Any, kind: Any = element) -> Any:
        return None if values is None else np.asarray(values).astype(kind)

    tensors = {"query": case.q, "pastKey": case.past_key, "pastValue": case.past_value}
    if case.layout != Layout.PACKED:
        tensors |= {"key": case.k, "value": case.v}
    for name, values in tensors.items():
        call.point(name, cast(values))
    call.point("seen", case.seen)
    call.point("newTokens", case.new)
    call.point("inverseFrequency", cast(case.inv_freq, np.float32))
    call.point("multiplier", cast(case.multiplier, np.float32))
    call.point("headSink", cast(case.head_sink, np.float32))
    call.point("output", np.full(output, -7.0, element))
    if not by_head:
        widths = {"query": case.q, "key": case.k, "value": case.v}
        for name, width in {
            **{name: x.shape[2] for name, x in widths.items()},
            "output": output[2],
        }.items():
            setattr(params.call, f"{name}Strides", Strides(rows * width, dim, width))
    if case.layout == Layout.PACKED:
        params.call.key = params.call.query + heads * dim * element.itemsize
        params.call.value = params.call.key + kv_heads * dim * element.itemsize
    for name, past in (("presentKey", "pastKey"), ("presentValue", "pastValue")):
        if alias:
            setattr(params.call, name, call.buffers[past].pointer)
            call.buffers[name] = call.buffers[past]
        else:
            call.point(name, np.full(call.buffers[past].shape, -7.0, element))
    return call
