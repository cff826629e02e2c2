"""The training itself: AdamW steps over batches, and a state from which a run goes on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctx_export.core.errors import UserError
from tools.finetune.settings import BETAS, WEIGHT_DECAY, TrainingSettings
from tools.finetune.text import Batch

_SEED_STRIDE = 1_000_003  # keeps the steps of one seed apart from those of the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a step did: its weighted mean loss in nats, before its update."""

    step: int  # counted from 1
    loss: float
    rate: float
    gradient_norm: float  # before clipping
    seconds: float


class Training:
    """A model with its optimiser. Two of the same settings and batches end in the same weights on
    a CPU, whether or not one was saved and loaded in between."""

    def __init__(self, model: Any, settings: TrainingSettings, device: str) -> None:
        self.model, self.done = model, 0
        self._settings, self._device = settings, device
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            list(self._trained.values()),
            lr=settings.rate,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
        )

    @property
    def trained(self) -> int:
        """Number of weights that are trained."""
        return sum(parameter.numel() for parameter in self._trained.values())

    def step(self, batches: Sequence[Batch]) -> Step:
        """One update from all `batches` of a step.

        Raises UserError where the loss is no finite number.
        """
        begin, rate = time.monotonic(), self._settings.rate_at(self.done)
        torch.manual_seed(self._settings.seed * _SEED_STRIDE + self.done)  # for dropout
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        whole = float(sum(batch.weights.sum() for batch in batches))
        loss = sum(self._backward(batch, whole) for batch in batches)
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self._settings.clip)
        if not (math.isfinite(loss) and bool(torch.isfinite(norm))):
            raise UserError(
                f"the loss is {loss:g} with gradient norm {float(norm):g} at step "
                f"{self.done + 1}: give a --rate below {self._settings.rate:g}"
            )
        self._optimizer.step()
        self.done += 1
        return Step(
            step=self.done,
            loss=loss,
            rate=rate,
            gradient_norm=float(norm),
            seconds=time.monotonic() - begin,
        )

    def _backward(self, batch: Batch, whole: float) -> float:
        """Add a batch's share of the step's loss to the gradients."""
        tokens = torch.from_numpy(batch.tokens).to(self._device)
        weights = torch.from_numpy(batch.weights).to(self._device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device == "cuda"):
            logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        loss = (losses * weights.flatten()).sum() / whole
        torch.autograd.backward(loss)
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Everything that the next step depends on; the file is there whole or not at all."""
        state = {
            "done": self.done,
            "weights": {n: p.detach() for n, p in self._trained.items()},
            "optimizer": self._optimizer.state_dict(),
        }
        part = path.with_suffix(".writing")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Go on from a saved state; raises UserError for a file that is none of this model."""
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            with torch.no_grad():
                for name, parameter in self._trained.items():
                    parameter.copy_(state["weights"][name])
            self._optimizer.load_state_dict(state["optimizer"])
            self.done = int(state["done"])
        except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}): give --restart to begin again"
            ) from None
