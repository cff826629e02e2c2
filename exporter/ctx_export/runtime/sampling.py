"""Choosing the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.runtime.backend import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Temperature 0 takes the likeliest token. Otherwise logits / temperature are cut to the
    `top_k` likeliest (0: all), then to the fewest whose probability reaches `top_p`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}: give 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"top-k is {self.top_k}: give a number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p}: give a probability above 0, up to 1")


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Floats) -> int:
        """The next token for `logits` [V]; ties go to the lower id."""
        if self._sampling.temperature == 0:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")
        if self._sampling.top_k:
            order = order[: self._sampling.top_k]
        scaled = logits[order].astype(np.float64) / self._sampling.temperature
        weights = np.exp(scaled - scaled[0])
        weights /= weights.sum()
        # Every token before which less than top_p was reached.
        kept = np.cumsum(weights) - weights < self._sampling.top_p
        kept[0] = True
        weights = weights[kept] / weights[kept].sum()
        return int(self._random.choice(order[kept], p=weights))
