"""onnx: the package's graph alone, for onnxruntime or any other ONNX runtime."""

from __future__ import annotations

from ctx_export.targets.base import Target

TARGET = Target(
    name="onnx",
    summary="ONNX graph for any runtime; the context operators are functions inside it",
    preference=0,
    runtime=None,
    available=lambda: None,
)
