"""Element types of a key-value cache: the activations' own, or one byte with scales per head.

A quantised element is x / scale rounded to nearest even: to a float8 e4m3 number of at most 448,
or to an integer from -127 to 127. Every layer has one scale per KV head for keys and one for
values, chosen at export.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"  # the activations' own type


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheType:
    """One quantised type; an element is of one byte."""

    name: str  # what --kv-cache-dtype calls it
    dtype: str  # as ONNX names the type, and the manifest
    largest: float  # magnitude that rounding saturates at
    # Room that a scale leaves above the calibrated magnitudes: in float8 a factor of 2 costs no
    # precision, in int8 it would cost a bit.
    margin: float


FLOAT8 = CacheType(name="fp8", dtype="float8e4m3fn", largest=448.0, margin=2.0)
INT8 = CacheType(name="int8", dtype="int8", largest=127.0, margin=1.0)
CACHE_TYPES = {kind.name: kind for kind in (FLOAT8, INT8)}
KV_CACHE_DTYPES = (AUTO, *CACHE_TYPES)
ELEMENT_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    FLOAT8.dtype: 1,
    INT8.dtype: 1,
}


def cache_type(dtype: str) -> CacheType | None:
    """The quantised type that a tensor of element type `dtype` has, None for others."""
    return next((kind for kind in CACHE_TYPES.values() if kind.dtype == dtype), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScales:
    """Scales of one layer, one per KV head: what 1 in its cache means."""

    key: tuple[float, ...]
    value: tuple[float, ...]
