"""The rotation tables that onnxruntime-genai's builder writes for the cases of rope_cases.py.

Run in an environment with onnxruntime-genai, torch and transformers, and a tokenizer.json:

    python tests/golden/genai_tables.py TOKENIZER_DIRECTORY > tests/golden/genai_tables.json
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rope_cases import CASES, OF_MISTRAL


def checkpoint(config: dict[str, Any], tokenizer: Path, directory: Path) -> None:
    """A checkpoint of `config` with zero weights."""
    import torch
    from safetensors.torch import save_file

    for path in tokenizer.glob("tokenizer*.json"):
        shutil.copy(path, directory)
    (directory / "config.json").write_text(json.dumps(config))
    hidden, inner, vocab = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
        f"{layer}input_layernorm.weight": (hidden,),
        f"{layer}post_attention_layernorm.weight": (hidden,),
        f"{layer}mlp.gate_proj.weight": (inner, hidden),
        f"{layer}mlp.up_proj.weight": (inner, hidden),
        f"{layer}mlp.down_proj.weight": (hidden, inner),
        **{f"{layer}self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"},
    }
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def table(config: dict[str, Any], tokenizer: Path) -> dict[str, Any]:
    """inv_freq and multiplier of the builder's caches, or its error."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        checkpoint(config, tokenizer, source)
        options = {"-i": source, "-o": output, "-p": "fp32", "-e": "cpu", "-c": Path(folder, "c")}
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        arguments = [str(part) for option in options.items() for part in option]
        run = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if run.returncode:
            return {"error": run.stderr.strip().splitlines()[-1]}
        graph = ir.load(output / "model.onnx").graph
        cos, sin = (graph.initializers[f"{name}_cache"].const_value for name in ("cos", "sin"))
        assert cos is not None and sin is not None
        first = [np.asarray(part.numpy(), np.float64)[1] for part in (cos, sin)]
        return {
            "inv_freq": [float(f"{x:.7g}") for x in np.arctan2(first[1], first[0])],
            "multiplier": float(f"{np.hypot(*first)[0]:.7g}"),
        }


def main() -> None:
    tokenizer = Path(sys.argv[1])
    found: dict[str, Any] = {"onnxruntime-genai": version("onnxruntime-genai")}
    for family, cases in {"llama": CASES, "mistral": OF_MISTRAL}.items():
        found[family] = {name: table(config, tokenizer) for name, config in cases.items()}
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
