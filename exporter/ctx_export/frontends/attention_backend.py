"""How transformers computes a family's attention, and the modules that do it."""

from __future__ import annotations

import sys
from typing import Any

from ctx_export.core.errors import UserError

_NAMES = ("self_attn", "attention", "attn", "self_attention", "mixer")  # of a layer's attention


def attention_backend(config: Any) -> str:
    """PyTorch's own attention where the family of `config` has it, else its plain operators."""
    from transformers import AutoModelForCausalLM

    family = AutoModelForCausalLM._model_mapping[type(config)]
    return "sdpa" if getattr(family, "_supports_sdpa", False) else "eager"


def attention_function(attention: Any) -> Any:
    """transformers' function behind the backend of an attention module's family."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if attention_backend(attention.config) == "sdpa":
        return ALL_ATTENTION_FUNCTIONS["sdpa"]
    return sys.modules[type(attention).__module__].eager_attention_forward


def attention_module(layer: Any) -> Any:
    """The attention of a decoder layer; raises UserError for a layer that has none."""
    for name in _NAMES:
        if hasattr(layer, name):
            return getattr(layer, name)
    raise UserError(
        f"{type(layer).__name__} has no attention called {', '.join(_NAMES)}: a model of this "
        "kind cannot be validated in this version"
    )


def decoder_layers(model: Any) -> tuple[str, Any]:
    """The list of a decoder's layers and its name in the model."""
    import torch

    count = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return str(name), module
    raise UserError(
        f"{type(model).__name__} has no list of {count} decoder layer(s): a model of this kind "
        "cannot be traced or validated in this version"
    )


def check_replaceable(model: Any) -> None:
    """Raise UserError where a family computes its attention without asking its config how: another
    function cannot take its place."""
    if not hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS"):
        raise UserError(
            f"{type(model).__name__} does not let its attention be replaced: a model of this kind "
            "cannot be validated with this method in this version; --no-validate exports it "
            "without"
        )
