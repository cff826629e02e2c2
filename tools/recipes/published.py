"""What publishers state about the models of `recipes/`: recipes/models/OWNER--NAME.json.

A file is the part of the model's config.json that a plan reads. Its keys that start with an
underscore are not the publisher's: `_source` says where the file is published and where its
numbers were checked, `_parameters` is the number of weights of that architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctx_export.core.model_spec import ModelSpec
from ctx_export.frontends.checkpoint import model_spec
from ctx_export.frontends.refusals import check_supported

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MODELS = RECIPES / "models"
_PRECISION_OF = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_UNSTATED = "bf16"  # where a config.json leaves the weights' type to the shards
_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One model's facts."""

    model: str  # hub id
    config: Mapping[str, Any]  # the publisher's keys alone
    source: Mapping[str, Any]  # "config": URL of config.json, "checked": places
    parameters: int

    def spec(self) -> ModelSpec:
        """The decoder that the exporter would see; raises UserError where it cannot export it."""
        check_supported(self.config)
        stated = self.config.get("torch_dtype") or self.config.get("dtype")
        return model_spec(self.config, _PRECISION_OF.get(str(stated), _UNSTATED))

    def weight_bytes(self, precision: str) -> int:
        """Bytes of all weights in `precision`."""
        return self.parameters * _WEIGHT_BYTES[precision]


def facts_path(model: str) -> Path:
    """Where the facts of a hub id are kept."""
    return MODELS / f"{model.replace('/', '--')}.json"


def published(path: Path) -> Published:
    """The facts of one file."""
    held = json.loads(path.read_text(encoding="utf-8"))
    return Published(
        model=path.stem.replace("--", "/"),
        config={key: value for key, value in held.items() if not key.startswith("_")},
        source=held["_source"],
        parameters=held["_parameters"],
    )
