"""A llama of two layers with random weights: a checkpoint on disk and the packages made of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import export_source, load_source

VOCAB, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 97, 2, 4, 2, 16, 32
ORIGINAL_CONTEXT = 64
THETA = 10000.0


def save(directory: Path, *, seed: int = 1, family: str = "llama", **config: Any) -> Path:
    """A checkpoint in `directory`; `config` replaces entries of its config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    entries = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": ORIGINAL_CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
        "tie_word_embeddings": False,
        "pad_token_id": None,
        **config,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **entries))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            # Wide enough for sharp attention, so that logits depend on positions.
            spread = 0.2 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.normal_(0.0, spread, generator=generator)
            if "norm" in name:
                parameter.add_(1.0)
    model.save_pretrained(directory)
    return directory


def load(checkpoint: Path, rope: dict[str, Any] | None = None) -> Any:
    """transformers' own, unmodified model, under the rope_parameters `rope` if given."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    if rope is not None:
        config.rope_parameters = dict(rope)
    return AutoModelForCausalLM.from_pretrained(checkpoint, config=config).eval()


def source(checkpoint: Path, precision: str = "fp32") -> Source:
    return load_source(Recipe(model=str(checkpoint), precision=precision))


def export(traced: Source, output: Path, **options: Any) -> Path:
    """A package without engine and validation."""
    recipe = Recipe(
        model=str(traced.checkpoint.directory),
        output=output,
        precision=traced.precision,
        engine="none",
        validate=False,
        **options,
    )
    return export_source(traced, recipe).output


def copy(package: Path, directory: Path) -> Path:
    """A copy that can be changed: the files of a package may be the checkpoint's own, linked."""
    shutil.copytree(package, directory)
    return directory


def edit_table(package: Path, name: str, values: Any) -> None:
    """Replace the initializer `rope.<name>` of model.onnx, and nothing else."""
    path = package / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    (held,) = [tensor for tensor in model.graph.initializer if tensor.name == f"rope.{name}"]
    old = numpy_helper.to_array(held)
    held.CopyFrom(numpy_helper.from_array(values.reshape(old.shape).astype(old.dtype), held.name))
    onnx.save(model, path)


def edit_attention(package: Path, layer: int, name: str, value: float) -> None:
    """Replace an attribute of the attention node of `layer`."""
    path = package / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == "SinkWindowAttention"]
    (held,) = [entry for entry in nodes[layer].attribute if entry.name == name]
    held.CopyFrom(onnx.helper.make_attribute(name, value))
    onnx.save(model, path)
