"""Write the demo model as an ONNX file, the way a user of PyTorch would.

python -m tools.demo.onnx_file FILE
"""

from __future__ import annotations

import warnings
from pathlib import Path

import click


def write(path: Path) -> None:
    """The demo decoder in float32 at `path`, with its weights beside it in `path`.data."""
    import torch
    from transformers import AutoModelForCausalLM

    from ctx_export import demo

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForCausalLM.from_pretrained(demo.path(), dtype=torch.float32)

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
            output = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
            return output.logits  # type: ignore[no-any-return]

    names = ("input_ids", "position_ids")
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Decoder().eval(),
            (),
            str(path),
            kwargs={name: torch.ones(2, 5, dtype=torch.int64) for name in names},
            dynamo=True,
            opset_version=18,
            dynamic_shapes=dict.fromkeys(names, axes),
            output_names=["logits"],
            verbose=False,
        )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def main(file: Path) -> None:
    """Write the demo model to FILE and its weights to FILE.data."""
    write(file)


if __name__ == "__main__":
    main()
