"""LoRA (arXiv 2106.09685): y = W·x + (alpha / rank)·B·A·x, only A and B are trained.

W is what the checkpoint has; B begins at zero, so training begins at the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ctx_export.core.errors import UserError
from ctx_export.frontends.attention_backend import attention_module, decoder_layers
from tools.finetune.settings import LoraSettings


class LoraLinear(nn.Module):
    """A frozen linear layer W [out, in] with A [rank, in] and B [out, rank] beside it."""

    def __init__(
        self, base: nn.Linear, settings: LoraSettings, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base, self.scale = base, settings.alpha / settings.rank
        down = torch.empty(settings.rank, base.in_features)
        down.uniform_(-1, 1, generator=generator).mul_(1 / math.sqrt(base.in_features))
        self.lora_a = nn.Parameter(down.to(base.weight.device))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, settings.rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = nn.functional.linear(nn.functional.linear(x, self.lora_a), self.lora_b)
        adapted: torch.Tensor = self.base(x) + self.scale * low
        return adapted

    def merged(self) -> nn.Linear:
        """One linear layer that computes the same."""
        with torch.no_grad():
            self.base.weight += self.scale * self.lora_b @ self.lora_a
        return self.base


def add_lora(model: Any, settings: LoraSettings, seed: int) -> None:
    """Freeze `model` and put matrices beside its attentions' linear layers (and the MLPs')."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parent, name, linear in list(_linears(model, mlp=settings.mlp)):
        setattr(parent, name, LoraLinear(linear, settings, generator))


def merge_lora(model: nn.Module) -> None:
    """Add every product of matrices to the weights that it is beside."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.merged())


def _linears(model: Any, *, mlp: bool) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Linear layers with the module and the name that hold them."""
    found = False
    for layer in decoder_layers(model)[1]:
        for parent in (layer if mlp else attention_module(layer)).modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    found = True
                    yield parent, name, child
    if not found:
        raise UserError(
            f"{type(model).__name__} has no linear layers in its attention: leave --lora out"
        )
