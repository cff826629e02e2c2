"""Whether a run fits: a lower bound of its memory against what is free."""

from __future__ import annotations

from ctx_export.core.errors import UserError
from ctx_export.core.sizes import format_size
from ctx_export.validate.memory import available_bytes, gibibytes, parameters
from tools.finetune.extension import Extension
from tools.finetune.settings import TrainingSettings

_FLOAT = 4  # bytes
_STATES = 4  # of a trained weight: itself, its gradient, two moments of AdamW
_LOGITS = 3  # the logits, their logarithms of shares and their gradient
# Vectors of the hidden size that a layer's backward pass needs: its input, both norms', queries,
# keys, values and outputs, and the MLP's three of about three times that size.
_LAYER = 16


def check_memory(extension: Extension, settings: TrainingSettings, device: str) -> None:
    """Raise UserError where the weights and one batch of windows cannot fit."""
    free = _free(device)
    needed = least_bytes(extension, settings, device)
    if free is not None and needed > free:
        raise UserError(
            f"length {format_size(settings.length)} with batch {settings.batch} needs at least "
            f"{gibibytes(needed)} and {gibibytes(free)} are free: give a smaller --batch with "
            "--accumulate, --gradient-checkpointing, --lora, or a --length below the target"
        )


def least_bytes(extension: Extension, settings: TrainingSettings, device: str) -> int:
    """Weights with their optimiser, and what a forward pass keeps for its backward pass."""
    spec = extension.plan.spec
    states = 1 if settings.lora is not None else _STATES
    weights = _FLOAT * states * parameters(extension.checkpoint)
    tokens = settings.batch * settings.length
    element = 2 if device == "cuda" else _FLOAT  # autocast's
    kept = spec.layers + _LAYER if settings.gradient_checkpointing else spec.layers * _LAYER
    return weights + tokens * (element * kept * spec.hidden + _FLOAT * _LOGITS * spec.vocab)


def _free(device: str) -> int | None:
    if device == "cpu":
        return available_bytes()
    import torch

    return int(torch.cuda.mem_get_info()[0])
