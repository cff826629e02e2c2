"""How a model is fine-tuned: every choice of a run that is not the scaling method's."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctx_export.core.errors import UserError

SCHEDULES = ("constant", "cosine")
DEVICES = ("auto", "cpu", "cuda")
# Position Interpolation (arXiv 2306.15595, section 3.1): AdamW, no weight decay, 20 steps of
# linear warm-up from a tenth of the rate, 2e-5 for 7B parameters.
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.0
WARMUP_START = 0.1
LARGE_RATE = 2e-5
# Small models want more: with it 200 steps of the demo are enough (see __main__).
SMALL_RATE = 1e-3
_SMALL = 100_000_000  # parameters
COSINE_END = 0.1  # share of the rate that a cosine schedule ends at


def default_rate(parameters: int) -> float:
    """The learning rate of a model with so many parameters where nobody gave one."""
    return SMALL_RATE if parameters < _SMALL else LARGE_RATE


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Low-rank matrices beside a model's linear layers (arXiv 2106.09685)."""

    rank: int
    alpha: float  # the product of the matrices is scaled by alpha / rank
    mlp: bool = False  # also beside the linear layers after the attention

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora is {self.rank}: give a rank of at least 1, such as 8")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora-alpha is {self.alpha:g}: give a number above 0, such as 16")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """A run of `steps` steps, each of `accumulate` times `batch` windows of `length` tokens."""

    steps: int = 200
    batch: int = 4
    accumulate: int = 1
    length: int
    rate: float
    warmup: int = 20
    schedule: str = "constant"
    clip: float = 1.0  # largest norm of a gradient
    seed: int = 0
    pass_keys: float = 0.0  # share of the windows that are pass-key questions
    lora: LoraSettings | None = None  # None: every weight is trained
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("accumulate", 1), ("length", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: give at least {least}")
        if not 0 <= self.warmup <= self.steps:
            raise UserError(f"warmup is {self.warmup}: give 0 to {self.steps}, the steps")
        for name in ("rate", "clip"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserError(f"{name} is {value:g}: give a finite number above 0")
        if not 0 <= self.pass_keys <= 1:
            raise UserError(f"pass-keys is {self.pass_keys:g}: give a share from 0 to 1")
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"schedule is {self.schedule!r}: it must be one of {', '.join(SCHEDULES)}"
            )

    @property
    def windows(self) -> int:
        """Windows of a step."""
        return self.batch * self.accumulate

    @property
    def questions(self) -> int:
        """Windows of a step that are pass-key questions."""
        return round(self.pass_keys * self.windows)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, then as the schedule says."""
        if step < self.warmup:
            return self.rate * (WARMUP_START + (1 - WARMUP_START) * step / self.warmup)
        if self.schedule == "constant":
            return self.rate
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return self.rate * (COSINE_END + (1 - COSINE_END) * cosine)
