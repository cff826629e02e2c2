"""What PyTorch's own exporter does with a checkpoint: load it, export, save with external data.

Usage: torch_onnx_export.py CHECKPOINT OUT
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(checkpoint: str, out: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.train(False)
    model.config.use_cache = False
    tokens = torch.ones(2, 16, dtype=torch.int64)
    dimensions = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        model,
        (),
        kwargs={"input_ids": tokens},
        dynamic_shapes={"input_ids": dimensions},
        dynamo=True,
        opset_version=23,
    )
    assert program is not None
    Path(out).mkdir(parents=True)
    program.save(str(Path(out) / "model.onnx"), external_data=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
