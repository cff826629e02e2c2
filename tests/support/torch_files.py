"""ONNX files as torch.onnx writes them: by its newer exporter (dynamo) and by TorchScript."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.families import load_config, load_model

NAMES = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True, kw_only=True)
class Form:
    """One of torch.onnx's two exporters and an opset; dynamo keeps weights in a second file."""

    dynamo: bool
    opset: int

    def __str__(self) -> str:
        return f"{'torch' if self.dynamo else 'TorchScript'} {self.opset}"


def write(checkpoint: Path, path: Path, form: Form) -> Path:
    """The decoder of a checkpoint at `path`, without cached keys, axes dynamic."""
    import torch

    given = {name: torch.ones(2, 5, dtype=torch.int64) for name in NAMES}
    given["position_ids"] = torch.arange(5)[None].repeat(2, 1)
    options: dict[str, Any]
    if form.dynamo:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
        options = {"dynamic_shapes": dict.fromkeys(NAMES, axes), "verbose": False}
    else:
        names = {0: "batch", 1: "tokens"}
        options = {"dynamic_axes": dict.fromkeys(NAMES, names), "input_names": list(NAMES)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _decoder(checkpoint),
            (),
            str(path),
            kwargs=given,
            dynamo=form.dynamo,
            opset_version=form.opset,
            output_names=["logits"],
            **options,
        )
    return path


def _decoder(checkpoint: Path) -> Any:
    import torch

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = load_config(checkpoint)
            # Loops over the experts that a text happens to choose can be written by no exporter.
            config._experts_implementation = "batched_mm"
            self.model = load_model(checkpoint, config)

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any) -> Any:
            return self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=False,
            ).logits

    return Decoder().eval()
