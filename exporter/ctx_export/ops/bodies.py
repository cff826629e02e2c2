"""The function body of every attention that looks behind a window, by the operator's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import onnx_ir as ir

from ctx_export.ops.dual_chunk import dual_chunk_attention
from ctx_export.ops.far import FarVariant
from ctx_export.ops.landmark import LandmarkVariant, landmark_attention
from ctx_export.ops.memory import memory_attention
from ctx_export.ops.self_extend import self_extend_attention
from ctx_export.ops.spec import (
    DUAL_CHUNK_ATTENTION,
    LANDMARK_ATTENTION,
    MEMORY_ATTENTION,
    SELF_EXTEND_ATTENTION,
)


class FarBody(NamedTuple):
    """What a body is made for, and what makes it."""

    variant: Callable[..., Any]
    make: Callable[[Any], ir.Function]


FAR_BODIES: Mapping[str, FarBody] = {
    SELF_EXTEND_ATTENTION.name: FarBody(FarVariant, self_extend_attention),
    DUAL_CHUNK_ATTENTION.name: FarBody(FarVariant, dual_chunk_attention),
    MEMORY_ATTENTION.name: FarBody(FarVariant, memory_attention),
    LANDMARK_ATTENTION.name: FarBody(LandmarkVariant, landmark_attention),
}
