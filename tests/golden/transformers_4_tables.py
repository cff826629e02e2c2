"""The rotation tables of transformers 4 for the cases of rope_cases.py.

Run in an environment with transformers 4 and torch:

    python tests/golden/transformers_4_tables.py > tests/golden/transformers_4_tables.json
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

from rope_cases import CASES, length
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


def table(config: dict[str, Any]) -> dict[str, Any]:
    """inv_freq and multiplier of the model's rotary embedding, or its error. Where the table
    follows the length, that of `length`."""
    import torch

    try:
        entries = {key: value for key, value in config.items() if key != "model_type"}
        rotary = LlamaRotaryEmbedding(AutoConfig.for_model(config["model_type"], **entries))
        last = torch.tensor([[length(config) - 1]])
        rotary(torch.zeros(1), last)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
    return {
        "inv_freq": [float(f"{x:.7g}") for x in rotary.inv_freq.double().tolist()],
        "multiplier": float(f"{rotary.attention_scaling:.7g}"),
    }


def main() -> None:
    tables = {name: table(config) for name, config in CASES.items()}
    json.dump({"transformers": version("transformers"), "tables": tables}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
