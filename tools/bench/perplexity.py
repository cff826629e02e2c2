"""The demo's held-out text as tokens, and perplexity with its standard error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctx_export import demo

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]


def heldout_tokens() -> tuple[int, Ints]:
    """BOS, and the held-out text tokenised once, [N], without a BOS of its own."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo.path() / "tokenizer.json"))
    ids = tokenizer.encode(demo.heldout_text(), add_special_tokens=False).ids
    return bos_token(), np.array(ids, np.int64)


def bos_token() -> int:
    """The demo's BOS token."""
    import json

    config = json.loads((demo.path() / "config.json").read_text(encoding="utf-8"))
    return int(config["bos_token_id"])


def losses(logits: NDArray[np.float32], targets: Ints) -> Doubles:
    """Negative log-likelihood, in nats, of `targets` [N] under `logits` [N,V]; float64."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=1)
    total = np.log(np.exp(wide - peak[:, None]).sum(axis=1)) + peak
    found: Doubles = total - wide[np.arange(len(targets)), targets]
    return found


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
