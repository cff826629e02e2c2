import numpy as np
import pytest
import torch

from ctx_export.core.errors import UserError
from ctx_export.evaluation.scoring import Perplexity, Scores, losses


def test_losses_are_pytorchs_cross_entropy():
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 30, (7, 19)).astype(np.float32)
    targets = draw.integers(0, 19, 7)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(targets), reduction="none"
    )
    np.testing.assert_allclose(losses(logits, targets), expected.numpy(), rtol=1e-12)


def test_logits_too_large_to_exponentiate_have_finite_losses():
    found = losses(np.array([[1e4, 0.0]], np.float32), np.array([1]))
    assert found[0] == pytest.approx(1e4)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_overflowed_are_refused(broken):
    logits = np.zeros((2, 3), np.float32)
    logits[1, 2] = broken
    with (
        pytest.raises(UserError, match="logits of half are not finite"),
        np.errstate(invalid="ignore"),
    ):
        Scores.of(logits, np.array([0, 1]), "half")


def test_a_token_that_can_never_come_does_not_matter_to_the_others():
    logits = np.array([[0.0, 0.0, -np.inf]], np.float32)
    assert Scores.of(logits, np.array([0])).losses == pytest.approx([np.log(2)])


def test_the_likeliest_token_is_the_largest_logit():
    logits = np.array([[0, 2, 1], [5, 2, 1]], np.float32)
    assert Scores.of(logits, np.array([1, 2])).likeliest.tolist() == [True, False]


def test_the_standard_error_of_a_perplexity_is_its_spread_over_blocks():
    # Means 1, 2, 3: the mean is 2, the sample deviation 1, its error 1/√3; times exp(2).
    found = Perplexity.of(np.array([1.0, 2.0, 3.0]))
    assert found.value == pytest.approx(np.exp(2))
    assert found.error == pytest.approx(np.exp(2) / np.sqrt(3))
