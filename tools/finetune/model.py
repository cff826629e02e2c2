"""transformers' own model of an extension: loaded in float32, saved as the checkpoint was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError
from tools.finetune.extension import Extension, check_rotary
from tools.finetune.settings import TrainingSettings


def choose_device(name: str) -> str:
    """cpu or cuda; raises UserError for a GPU that PyTorch does not find."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda and PyTorch finds no GPU: give --device cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def load(extension: Extension, settings: TrainingSettings, device: str) -> Any:
    """The model that is trained, with low-rank matrices where the settings have them."""
    import torch
    from transformers import AutoModelForCausalLM

    from ctx_export.frontends.attention_backend import attention_backend
    from ctx_export.validate.torch_reference import quiet

    directory = extension.checkpoint.directory
    with quiet():
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(directory),
                config=extension.config,
                dtype=torch.float32,
                attn_implementation=attention_backend(extension.config),
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{directory} cannot be loaded by transformers: {line}") from None
    check_rotary(model, extension)
    model.to(device)
    if settings.lora is not None:
        from tools.finetune.lora import add_lora

        add_lora(model, settings.lora, settings.seed)
    if settings.gradient_checkpointing:
        _checkpoint_activations(model)
    return model.train()


def _checkpoint_activations(model: Any) -> None:
    """Keep each layer's input alone for the backward pass."""
    # transformers 5 renamed it on the way and warns of the older name.
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    model.enable_input_require_grads()  # a frozen embedding's output would need none


def save(model: Any, extension: Extension, directory: Path) -> None:
    """A checkpoint directory in the checkpoint's precision, with its tokenizer."""
    import torch

    from ctx_export.build.package import copy_tokenizer
    from ctx_export.validate.torch_reference import TORCH_TYPES, quiet
    from tools.finetune.lora import merge_lora

    merge_lora(model)
    precision = getattr(torch, TORCH_TYPES[extension.checkpoint.spec.precision])
    with quiet():
        model.to("cpu").to(precision).save_pretrained(directory)
    copy_tokenizer([extension.checkpoint.directory], directory)
    _lengthen_tokenizer(directory / "tokenizer_config.json", extension.target)


def _lengthen_tokenizer(path: Path, target: int) -> None:
    """Tokenizers that state the longest text state the old one."""
    if not path.is_file():
        return
    entries = json.loads(path.read_text(encoding="utf-8"))
    stated = entries.get("model_max_length")
    if isinstance(stated, (int, float)) and stated < target:
        entries["model_max_length"] = target
        path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
