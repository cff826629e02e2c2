"""What a package would need and do, per method, before anything is built: from config.json alone.

Nothing here imports torch, transformers, onnx or onnxruntime. What is exact and what is an
estimate are never mixed: caches and workspace are exact, weights say where their size comes from,
activations are an estimate with its formula.
"""

from __future__ import annotations

from ctx_export.planning.report import Report, plan_report

__all__ = ["Report", "plan_report"]
