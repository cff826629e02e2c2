"""Stage 2's result: an onnx-ir model without weight data and where each weight lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.core.model_spec import ModelSpec
from ctx_export.frontends.checkpoint import Checkpoint
from ctx_export.frontends.shards import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A decoder as a graph. Passes work on a clone of `model`, so one source serves many plans.

    Graph inputs: input_ids and position_ids [batch, tokens] int64; output logits. `weights` maps
    initializer names to tensors of the checkpoint; `precision` is the graph's own.
    """

    model: ir.Model
    spec: ModelSpec
    precision: str
    checkpoint: Checkpoint
    weights: Mapping[str, Tensor]
