"""Choosing tokens. Oracle: probabilities written by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.runtime.sampling import Sampler, Sampling

# Probabilities 0.1, 0.4, 0.2, 0.3 at temperature 1.
LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32)) + 3


def draw(count: int = 4000, **options: float) -> Counter[int]:
    sampler = Sampler(Sampling(**{"temperature": 1.0, "seed": 5, **options}))  # type: ignore[arg-type]
    return Counter(sampler.choose(LOGITS) for _ in range(count))


def test_greedy_takes_the_likeliest_and_the_lower_of_equals() -> None:
    assert Sampler(Sampling()).choose(LOGITS) == 1
    assert Sampler(Sampling()).choose(np.array([0, 2, 2], np.float32)) == 1


def test_frequencies_follow_the_probabilities() -> None:
    counts = draw()
    for token, probability in enumerate([0.1, 0.4, 0.2, 0.3]):
        assert abs(counts[token] / 4000 - probability) < 0.03


def test_temperature_sharpens() -> None:
    # Squares of the probabilities: 1, 16, 4, 9 of 30.
    counts = draw(temperature=0.5)
    for token, share in enumerate([1, 16, 4, 9]):
        assert abs(counts[token] / 4000 - share / 30) < 0.03


def test_top_k_and_top_p_cut_the_tail() -> None:
    assert set(draw(top_k=2)) == {1, 3}
    assert set(draw(top_p=0.7)) == {1, 3}
    assert set(draw(top_p=0.71)) == {1, 2, 3}
    assert set(draw(top_p=1e-9)) == {1}


def test_a_seed_repeats() -> None:
    assert draw(50, seed=9) == draw(50, seed=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, "top-p is 0"),
        ({"top_p": 1.5}, "top-p is 1.5"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)  # type: ignore[arg-type]
