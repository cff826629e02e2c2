"""What a cache tensor's elements mean: keys and values to the bytes that it holds, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.cache_type import FLOAT8, INT8, LayerScales, cache_type
from ctx_export.runtime.backend import Floats
from ctx_export.runtime.twin import narrow, widen

# numpy has no bfloat16 and no float8 of its own: these travel as their bits.
TYPES_AS_BITS = ("bfloat16", FLOAT8.dtype)
NUMPY_TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    FLOAT8.dtype: np.uint8,
    INT8.dtype: np.int8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCodec:
    """Elements of type `dtype`; of a quantised one `scale` [Hkv] says what 1 means."""

    dtype: str
    scale: NDArray[np.float32] | None = None

    def stored(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows [B,H,P,D] as what the tensor holds."""
        if self.dtype == "bfloat16":
            return narrow(rows)
        if self.scale is None:
            return rows.astype(NUMPY_TYPES[self.dtype])
        scaled = rows.astype(np.float32) / self.scale[:, None, None]
        return quantise(scaled, self.dtype)

    def read(self, elements: NDArray[Any]) -> Floats:
        """A float32 copy of elements [B,H,C,D]."""
        if self.dtype == "bfloat16":
            return widen(elements)
        if self.dtype == FLOAT8.dtype:
            import ml_dtypes

            elements = elements.view(ml_dtypes.float8_e4m3fn)
        numbers = elements.astype(np.float32)
        return numbers if self.scale is None else numbers * self.scale[:, None, None]

    def as_type(self, dtype: str) -> CacheCodec:
        """The same for a tensor of element type `dtype`."""
        return replace(self, dtype=dtype)


def codecs(dtype: str, scales: LayerScales | None) -> tuple[CacheCodec, CacheCodec]:
    """Of a layer's keys and of its values."""
    if scales is None:
        return CacheCodec(dtype=dtype), CacheCodec(dtype=dtype)
    key, value = (np.asarray(part, np.float32) for part in (scales.key, scales.value))
    return CacheCodec(dtype=dtype, scale=key), CacheCodec(dtype=dtype, scale=value)


def quantise(scaled: Floats, dtype: str) -> NDArray[Any]:
    """Values that are divided by their scale, rounded to nearest even and saturated."""
    kind = cache_type(dtype)
    if kind is None:
        raise ValueError(f"{dtype} is no quantised type")
    clipped = np.clip(scaled, -kind.largest, kind.largest)
    if kind is INT8:
        return np.rint(clipped).astype(np.int8)
    import ml_dtypes

    return clipped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
