"""Stage 2's result: an onnx-ir model without weight data and where each weight lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ctx_export.core.model_spec import ModelSpec
from ctx_export.frontends.checkpoint import Checkpoint
from ctx_export.frontends.shards import Tensor
from ctx_export.scaling.base import FrequencyTable


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """The file that a source was read from.

    `quantised`: its weights are not PyTorch's numbers; `rounds_activations`: nor is what it
    multiplies them by, which is rounded to 8 bits. `tables`: what each layer rotates by, None
    where that follows the length.
    """

    path: Path
    producer: str
    opset: int
    quantised: bool
    rounds_activations: bool = False
    tables: tuple[FrequencyTable | None, ...] = ()

    def to_json(self, reference: Checkpoint | None) -> dict[str, Any]:
        """The manifest's `source` entry."""
        return {
            "file": self.path.name,
            "producer": self.producer,
            "opset": self.opset,
            "quantised_weights": self.quantised,
            "reference": None if reference is None else reference.directory.name,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A decoder as a graph. Passes work on a clone of `model`, so one source serves many plans.

    Graph inputs: input_ids and position_ids [batch, tokens] int64, and of an ONNX file the others
    that it had; output logits. `weights` maps initializer names to tensors of the checkpoint;
    those of an ONNX file have their place or their numbers in the graph. `precision` is the
    graph's own.
    `checkpoint` is what PyTorch can run, None where an ONNX file has no reference.
    """

    model: ir.Model
    spec: ModelSpec
    precision: str
    checkpoint: Checkpoint | None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    file: OnnxFile | None = None

    @property
    def tokenizers(self) -> tuple[Path, ...]:
        """Directories that may hold tokenizer files, the first choice first."""
        beside = [] if self.file is None else [self.file.path.parent]
        return (*beside, *([] if self.checkpoint is None else [self.checkpoint.directory]))
