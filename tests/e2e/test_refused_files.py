"""Real models that no rotation can extend: their ONNX files are refused with the reason.

Oracle: what transformers' documentation says of each family's positions.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.recipe import Recipe
from ctx_export.pipeline import run
from tests.support.families import randomise

VOCAB, CONTEXT = 73, 64
TOKENS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": CONTEXT},
    "opt": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "ffn_dim": 32,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": CONTEXT,
    },
    "mpt": {"n_layers": 2, "n_heads": 2, "d_model": 32, "max_seq_len": CONTEXT},
    "bloom": {"n_layer": 2, "n_head": 2, "hidden_size": 32},
    "t5": {
        "num_layers": 2,
        "num_heads": 2,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 32,
        "decoder_start_token_id": 0,
    },
}

pytestmark = pytest.mark.usefixtures("one_thread")


def write(family: str, path: Path) -> Path:
    """A random model of `family`, as TorchScript's exporter writes it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    seq2seq = family == "t5"
    loader = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    inner = loader.from_config(AutoConfig.for_model(family, **TOKENS, **CONFIGS[family]))
    randomise(inner)
    names = ["input_ids", "attention_mask", *(["decoder_input_ids"] if seq2seq else [])]

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *values: Any) -> Any:
            return self.inner(**dict(zip(names, values, strict=True)), use_cache=False).logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits().eval(),
            tuple(torch.ones(2, 5, dtype=torch.int64) for _ in names),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names},
        )
    return path


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt2", "no layer rotates its keys"),  # a learned row per position
        ("opt", "no layer rotates its keys"),
        ("mpt", "its mask adds numbers that differ between tokens, such as ALiBi's"),
        ("bloom", "no attention on .* batch and heads in one dimension, as those with ALiBi"),
        ("t5", "decoder_input_ids.*encoder-decoder"),
    ],
)
def test_a_model_without_rotation_is_refused(family, reason, tmp_path):
    model = write(family, tmp_path / "model.onnx")
    recipe = Recipe(
        model=str(model), output=tmp_path / "package", original_context=CONTEXT, method="yarn"
    )
    with pytest.raises(UserError, match=reason):
        run(recipe)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
