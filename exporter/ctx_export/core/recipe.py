"""Stage 1: command line and YAML to one frozen `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything a user can ask of an export. None means: as the checkpoint or the method says."""

    model: str = "demo"  # checkpoint directory, hub id, .onnx file or "demo"
    output: Path | None = None
    method: str | None = None  # None: honour the checkpoint's own settings
    target: int | None = None  # tokens; None: the checkpoint's max_position_embeddings
    factor: float | None = None
    original_context: int | None = None
    sinks: int = 0
    window: int = 0
    precision: str | None = None  # fp32, fp16, bf16; None: the checkpoint's own
    engine: str = "auto"  # auto, none, tensorrt, tensorrt-rtx
    max_batch: int = 1
    max_chunk: int = 1024
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the method, by HF key
    validate: bool = True
    tolerance: float | None = None  # None: 1e-3 of the logit scale in float32, else the rule
    force: bool = False
