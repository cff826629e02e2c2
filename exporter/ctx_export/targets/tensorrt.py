"""tensorrt: an engine for TensorRT, built on and for the GPU of the machine that exports."""

from __future__ import annotations

from ctx_export.targets._cuda_device import compute_capability, missing_gpu
from ctx_export.targets.base import Runtime, Target, missing_parts


def _available() -> str | None:
    missing = missing_parts(_RUNTIME, "tensorrt")
    if missing is not None:
        return missing
    no_gpu = missing_gpu()
    if no_gpu is None:
        return None
    return (
        f"TensorRT builds engines on a GPU and {no_gpu}: export on a machine with one, "
        "or choose --engine tensorrt-rtx, which builds without"
    )


def _compute_capabilities() -> tuple[str, ...]:
    found = compute_capability()
    return () if found is None else (found,)


_RUNTIME = Runtime(
    module="tensorrt",
    libraries="tensorrt_libs",
    distribution="tensorrt",
    label="TensorRT",
    compute_capabilities=_compute_capabilities,
)

TARGET = Target(
    name="tensorrt",
    summary="TensorRT engine for the GPU of this machine",
    preference=2,
    runtime=_RUNTIME,
    available=_available,
)
