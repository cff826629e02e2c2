"""tensorrt-rtx: an engine for TensorRT-RTX, which builds without a GPU and compiles on the user's.

Without a chosen capability the builder makes a portable engine: TensorRT-RTX documents Ampere, Ada
and Blackwell, and kernels are compiled for the GPU at hand when the engine is first loaded.
"""

from __future__ import annotations

from ctx_export.targets.base import Runtime, Target, missing_parts

_RUNTIME = Runtime(
    module="tensorrt_rtx",
    libraries="tensorrt_rtx_libs",
    distribution="tensorrt-rtx",
    label="TensorRT-RTX",
    compute_capabilities=lambda: ("8.0", "8.6", "8.9", "12.0+"),
)

TARGET = Target(
    name="tensorrt-rtx",
    summary="TensorRT-RTX engine, built on any machine",
    preference=1,
    runtime=_RUNTIME,
    available=lambda: missing_parts(_RUNTIME, "rtx"),
)
