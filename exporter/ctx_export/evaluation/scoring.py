"""Losses of tokens under logits, and means with their standard errors. All in nats, float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]


def losses(logits: Floats, targets: Ints) -> Doubles:
    """Negative log-likelihood of `targets` [N] under `logits` [N,V]."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1)
    total = np.log(np.exp(wide - peak[:, None]).sum(axis=1)) + peak
    found: Doubles = total - wide[np.arange(len(targets)), targets]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of every scored token [N]: its loss, and whether it was the likeliest one."""

    losses: Doubles
    likeliest: Bools

    @classmethod
    def of(cls, logits: Floats, targets: Ints, name: str = "the model") -> Scores:
        """From the logits [N,V] of the model `name` before each of `targets` [N]; raises UserError
        where a loss is no finite number, which no mean or comparison would tell."""
        found = losses(logits, targets)
        if not np.isfinite(found).all():
            raise UserError(
                f"logits of {name} are not finite, and nothing can be measured with them: the "
                "precision overflows; export with --precision bf16 or fp32"
            )
        return cls(losses=found, likeliest=logits.argmax(axis=1) == targets)

    @classmethod
    def joined(cls, parts: list[Scores]) -> Scores:
        return cls(
            losses=np.concatenate([part.losses for part in parts]),
            likeliest=np.concatenate([part.likeliest for part in parts]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """exp of a mean loss. `error` is one standard error, taken over the blocks that the mean is
    of: neighbouring tokens depend on each other, blocks hardly do."""

    value: float
    error: float

    @classmethod
    def of(cls, block_means: Doubles) -> Perplexity:
        """From the mean losses [M] of blocks of equally many tokens; M of at least 2."""
        mean, error = mean_and_error(block_means)
        value = float(np.exp(mean))
        return cls(value=value, error=value * error)


def mean_and_error(values: Doubles) -> tuple[float, float]:
    """Mean of at least two values and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
