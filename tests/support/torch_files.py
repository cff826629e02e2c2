"""ONNX files as torch.onnx writes them: by its newer exporter (dynamo) and by TorchScript."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.families import load_config, load_model

NAMES = ("input_ids", "attention_mask", "position_ids")
CACHED = 3  # tokens in the cache of the example that is traced


@dataclass(frozen=True, kw_only=True)
class Form:
    """One of torch.onnx's two exporters and an opset, `cached`: with inputs and outputs for keys
    and values; dynamo keeps weights in a second file."""

    dynamo: bool
    opset: int
    cached: bool = False

    def __str__(self) -> str:
        exporter = "torch" if self.dynamo else "TorchScript"
        return f"{exporter} {self.opset}{' with cache' if self.cached else ''}"


def write(checkpoint: Path, path: Path, form: Form) -> Path:
    """The decoder of a checkpoint at `path`, axes dynamic."""
    import torch

    decoder = _cached_decoder(checkpoint) if form.cached else _decoder(checkpoint)
    given = {name: torch.ones(2, 5, dtype=torch.int64) for name in NAMES}
    given["position_ids"] = torch.arange(5)[None].repeat(2, 1)
    names, outputs = list(NAMES), ["logits"]
    if form.cached:
        given["attention_mask"] = torch.ones(2, 5 + CACHED, dtype=torch.int64)
        given["past"] = decoder.empty()
        pasts = [f"past_key_values.{layer}.{part}" for layer, part in decoder.parts]
        names += pasts
        outputs += [name.replace("past_key_values", "present") for name in pasts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            decoder,
            () if form.dynamo else tuple(given.values()),
            str(path),
            kwargs=given if form.dynamo else None,
            dynamo=form.dynamo,
            opset_version=form.opset,
            input_names=names,
            output_names=outputs,
            **(_dynamic_shapes(form, given) if form.dynamo else _dynamic_axes(names)),
        )
    return path


def _dynamic_shapes(form: Form, given: dict[str, Any]) -> dict[str, Any]:
    import torch

    if form.cached:
        free = torch.export.Dim.DYNAMIC
        shapes: dict[str, Any] = {name: {0: free, 1: free} for name in NAMES}
        shapes["past"] = [{0: free, 2: free} for _ in given["past"]]
    else:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
        shapes = dict.fromkeys(NAMES, axes)
    return {"dynamic_shapes": shapes, "verbose": False}


def _dynamic_axes(names: list[str]) -> dict[str, Any]:
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "tokens"} for name in NAMES}
    if len(names) > len(NAMES):
        axes["attention_mask"] = {0: "batch", 1: "all"}
        axes |= {name: {0: "batch", 2: "cached"} for name in names[len(NAMES) :]}
    return {"dynamic_axes": axes}


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


def _cached_decoder(checkpoint: Path) -> Any:
    """As other tools wrap it: keys and values as plain tensors, in and out."""
    import torch
    from transformers import DynamicCache

    class CachedDecoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = load_config(checkpoint)
            self.model = load_model(checkpoint, config)
            self.layers = config.num_hidden_layers
            self.sizes = (config.num_key_value_heads, CACHED, config.head_dim)
            self.parts = [(i, part) for i in range(self.layers) for part in ("key", "value")]

        def empty(self) -> list[Any]:
            return [torch.zeros(2, *self.sizes) for _ in self.parts]

        def forward(
            self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any
        ) -> Any:
            cache = DynamicCache()
            for layer in range(self.layers):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
            held = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
            return (output.logits, *(part for pair in held for part in pair))

    return CachedDecoder().eval()
