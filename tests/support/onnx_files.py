"""Small ONNX files: a graph from tokens to logits without any attention, to damage; and decoders
written by PyTorch's exporter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

VOCAB, WIDTH = 5, 4
_TEXT = """
<ir_version: 10, opset_import: ["" : 18], producer_name: "tests">
decoder (int64[b, s] input_ids) => (float[b, s, 5] logits)
<float[5, 4] table, float[4, 5] head>
{
    hidden = Gather (table, input_ids)
    logits = MatMul (hidden, head)
}
"""


def tokens_to_logits() -> onnx.ModelProto:
    """input_ids → Gather → MatMul → logits, with its weights inside."""
    model = onnx.parser.parse_model(_TEXT)
    del model.graph.initializer[:]
    generator = np.random.default_rng(7)
    for name, shape in (("table", (VOCAB, WIDTH)), ("head", (WIDTH, VOCAB))):
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def externalise(
    model: onnx.ModelProto, directory: Path, name: str = "data.bin"
) -> onnx.TensorProto:
    """Move the weight `table` into the file `name` in `directory`; its tensor is returned."""
    table = model.graph.initializer[0]
    (directory / name).write_bytes(b"\0" * 16 + table.raw_data)
    size = len(table.raw_data)
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    refer(table, location=name, offset=16, length=size)
    return table


def refer(tensor: onnx.TensorProto, **entries: Any) -> None:
    """State where external data lies; entries given replace those there."""
    kept = {entry.key: entry.value for entry in tensor.external_data}
    del tensor.external_data[:]
    for key, value in {**kept, **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


def write_decoder(checkpoint: Path, path: Path, *, opset: int = 23, mask: bool = False) -> Path:
    """The decoder of `checkpoint` at `path`, as torch.onnx.export writes it with dynamic axes."""
    import torch
    from transformers import AutoModelForCausalLM

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = AutoModelForCausalLM.from_pretrained(checkpoint).eval()

        def forward(
            self,
            input_ids: torch.Tensor,
            position_ids: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
        ) -> torch.Tensor:
            logits: torch.Tensor = self.m(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=attention_mask,
                use_cache=False,
            ).logits
            return logits

    names = ["input_ids", "position_ids", *(["attention_mask"] if mask else [])]
    given = {name: torch.ones(2, 5, dtype=torch.int64) for name in names}
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Decoder().eval(),
            (),
            str(path),
            kwargs=given,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=dict.fromkeys(names, axes),
            input_names=names,
            output_names=["logits"],
            external_data=True,
            verbose=False,
        )
    return path
