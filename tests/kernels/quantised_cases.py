"""SinkWindowAttention calls with a quantised cache, made from the plain ones.

Scales are powers of two: dividing by one is exact, so that reference and kernel round the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ctx_export.ops.reference import AttentionCase, quantised
from tests.kernels.attention_cases import Shape, make_case, prepare
from tests.kernels.kernel_library import Call, KernelLibrary

# (code of the C interface, element, what an empty slot holds: int8 has no NaN, its largest shows)
CACHE_TYPES: dict[str, tuple[int, Any, float]] = {
    "float8e4m3fn": (1, ml_dtypes.float8_e4m3fn, np.nan),
    "int8": (2, np.int8, 127.0),
}
_SCALES = {"float8e4m3fn": 2.0**-7, "int8": 2.0**-5}


def make_quantised(shape: Shape, cache_type: str) -> AttentionCase:
    """The shape's case with its caches in units of a scale per head, rounded to the type."""
    case = make_case(shape)
    largest = _SCALES[cache_type] * 2.0 ** (np.arange(shape.kv_heads) % 2)
    scales = {"key": largest, "value": 2 * largest}
    empty = CACHE_TYPES[cache_type][2]

    def numbers(past: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
        held = quantised(past / scale[:, None, None], cache_type)
        return np.where(np.isnan(past), empty, held)

    return replace(
        case,
        past_key=numbers(case.past_key, scales["key"]),
        past_value=numbers(case.past_value, scales["value"]),
        cache_type=cache_type,
        key_scale=scales["key"],
        value_scale=scales["value"],
    )


def dequantised(
    case: AttentionCase, caches: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the numbers of both caches mean."""
    assert case.key_scale is not None and case.value_scale is not None
    key, value = caches
    return key * case.key_scale[:, None, None], value * case.value_scale[:, None, None]


def prepare_quantised(case: AttentionCase, dtype: str) -> Call:
    """The C call of such a case, past and present apart."""
    code, element, _ = CACHE_TYPES[case.cache_type]
    call = prepare(case, dtype, alias=False)
    for name, past in (("Key", case.past_key), ("Value", case.past_value)):
        held = past.astype(element)
        call.point(f"past{name}", held)
        call.point(f"present{name}", np.zeros_like(held))
    call.params.cacheType = code
    call.point("keyScale", np.asarray(case.key_scale, np.float32))
    call.point("valueScale", np.asarray(case.value_scale, np.float32))
    return call


def run_quantised(
    library: KernelLibrary, case: AttentionCase, dtype: str, *, workspace: bool = False
) -> tuple[Any, Any, Any]:
    """(y, present_key, present_value), the caches as the type's numbers."""
    call = prepare_quantised(case, dtype)
    written = ("output", "presentKey", "presentValue")
    library.run("ctxSinkWindowAttention", call, written, workspace=workspace)
    return tuple(call.buffers[name].values for name in written)
