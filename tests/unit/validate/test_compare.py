"""Oracles: errors and limits computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.validate.compare import RowErrors, Rule, logit_scale, row_errors


def floats(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


REFERENCE = floats([1.0, -4.0, 2.0], [0.0, 0.5, 1.0])


def test_errors_are_shares_of_the_largest_reference_logit_of_the_block():
    logits = floats([1.5, -4.0, 2.25], [0.0, 0.5, -1.0])
    errors = row_errors(logits, REFERENCE)
    assert errors.scale == 4.0
    # Differences 0.5, 0, 0.25 and 0, 0, 2 over 4.
    assert errors.maximum.tolist() == [0.125, 0.5]
    assert errors.mean == pytest.approx([0.75 / 12, 2 / 12], rel=1e-15)
    assert errors.problems == ()
    assert errors.maximum.dtype == np.float64


def test_a_scale_that_is_given_replaces_the_block_s_own():
    assert row_errors(REFERENCE + 1, REFERENCE, scale=8.0).maximum.tolist() == [0.125, 0.125]


def test_differences_are_not_rounded_to_float32():
    reference = floats([16777216.0, 0.0])
    logits = floats([16777218.0, 1e-30])
    assert row_errors(logits, reference).mean[0] == (2 + np.float64(np.float32(1e-30))) / 2 / 2**24


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.nan, "NaN in 1 of 3 rows, first in row 1"),
        (np.inf, "Inf in 1 of 3 rows, first in row 1"),
        (-np.inf, "Inf in 1 of 3 rows, first in row 1"),
    ],
)
def test_a_row_that_is_not_finite_is_infinitely_wrong_and_told(value, problem):
    reference = floats([1, 2], [3, 4], [5, 8])
    logits = reference.copy()
    logits[1, 0] = value
    errors = row_errors(logits, reference)
    assert errors.maximum.tolist() == [0, np.inf, 0]
    assert errors.mean.tolist() == [0, np.inf, 0]
    assert errors.problems == (problem,)


def test_nan_and_inf_are_told_each():
    logits = floats([np.nan, np.inf], [0, 0], [np.inf, 0])
    errors = row_errors(logits, np.ones((3, 2), np.float32))
    assert errors.problems == (
        "NaN in 1 of 3 rows, first in row 0",
        "Inf in 2 of 3 rows, first in row 0",
    )


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (1, 2, 3)])
def test_another_shape_is_another_model(shape):
    with pytest.raises(UserError, match=r"cannot be compared with a reference of \[2, 3\]"):
        row_errors(np.zeros(shape, np.float32), REFERENCE)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_another_element_type_is_refused(dtype):
    with pytest.raises(UserError, match=f"logits are {np.dtype(dtype)}"):
        row_errors(REFERENCE.astype(dtype), REFERENCE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_that_is_not_finite_is_an_error_of_use(value):
    reference = REFERENCE.copy()
    reference[0, 0] = value
    with pytest.raises(UserError, match="PyTorch's own float32 logits have NaN or Inf"):
        row_errors(REFERENCE, reference)


def test_a_reference_of_zeros_has_scale_1():
    assert logit_scale(np.zeros((2, 3), np.float32)) == 1.0


def test_rows_are_summed_up_from_first_to_last():
    errors = RowErrors(
        scale=1.0, maximum=np.array([1.0, 5.0, 2.0, 9.0]), mean=np.array([0.5, 1.0, 1.5, 7.0])
    )
    assert errors.at(1, 2) == (5.0, 1.25)
    assert errors.at(3, 3) == (9.0, 7.0)


def peer(*maximum: float) -> RowErrors:
    return RowErrors(scale=1.0, maximum=np.array(maximum), mean=np.zeros(len(maximum)))


def test_float32_has_one_limit_and_needs_no_other_measurement():
    rule = Rule.of("fp32", None)
    assert (rule.limit(None), rule.needs_peer) == (1e-3, False)
    assert rule.describe() == "error at most 0.001 of the logit scale"


@pytest.mark.parametrize(
    ("precision", "floor", "words"),
    [
        ("fp16", 1 / 2048, "error at most 2 × that of PyTorch in fp16 + 0.000488 of"),
        ("bf16", 1 / 256, "error at most 2 × that of PyTorch in bf16 + 0.00391 of"),
    ],
)
def test_low_precision_may_err_twice_as_much_as_pytorch_in_it(precision, floor, words):
    rule = Rule.of(precision, None)
    assert rule.needs_peer
    assert rule.limit(peer(0.001, 0.004, 0.002)) == 2 * 0.004 + floor
    assert rule.describe().startswith(words)


def test_rows_where_pytorch_overflows_excuse_nothing():
    rule = Rule.of("fp16", None)
    assert rule.limit(peer(0.001, np.inf)) == 2 * 0.001 + 1 / 2048
    assert rule.limit(peer(np.inf)) == 1 / 2048


def test_the_low_precision_rule_cannot_be_applied_unmeasured():
    with pytest.raises(ValueError, match="needs PyTorch's error in that precision"):
        Rule.of("fp16", None).limit(None)


def test_over_a_quantised_cache_float32_may_err_by_a_share_of_what_that_changes():
    """A package that does not quantise at all errs by all of it."""
    rule = Rule.of("fp32", None, quantised=True)
    changes = RowErrors(scale=1.0, maximum=np.array([0.02, 0.08]), mean=np.array([1e-3, 3e-3]))
    assert rule.limit(None, changes) == pytest.approx(1e-3 + 0.08 / 4)
    assert rule.mean_limit(None, changes) == pytest.approx(1e-4 + 0.15 * 2e-3)
    assert (rule.limit(None), rule.mean_limit(None), rule.needs_peer) == (1e-3, None, False)
    assert rule.describe() == (
        "error at most 0.001 of the logit scale + 0.25 × what quantising the cache changes, in "
        "the mean at most 0.0001 + 0.15 × that"
    )
    given = Rule.of("fp32", 0.02, quantised=True)
    assert (given.limit(None, changes), given.mean_limit(None, changes)) == (0.02, None)


def test_over_a_quantised_cache_low_precision_is_held_to_pytorch_s_mean_too():
    rule = Rule.of("fp16", None, quantised=True)
    changes = RowErrors(scale=1.0, maximum=np.array([0.02, 0.08]), mean=np.array([1e-3, 3e-3]))
    theirs = RowErrors(scale=1.0, maximum=np.array([0.004, np.inf]), mean=np.array([1e-3, np.inf]))
    assert rule.limit(theirs, changes) == pytest.approx(2 * 0.004 + 1 / 2048 + 0.08 / 4)
    assert rule.mean_limit(theirs, changes) == pytest.approx(2 * 1e-3 + 1 / 2048)
    assert rule.describe() == (
        "error at most 2 × that of PyTorch in fp16 + 0.000488 of the logit scale + 0.25 × what "
        "quantising the cache changes, in the mean at most 2 × that of PyTorch in fp16 + 0.000488"
    )
    overflow = RowErrors(scale=1.0, maximum=np.array([np.inf]), mean=np.array([np.inf]))
    assert rule.mean_limit(overflow, changes) == 1 / 2048
    with pytest.raises(ValueError, match="needs PyTorch's error in that precision"):
        rule.mean_limit(None, changes)
    given = Rule.of("fp16", 0.02, quantised=True)
    assert (given.limit(theirs, changes), given.mean_limit(theirs, changes)) == (0.02, None)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_tolerance_that_is_given_is_the_limit(precision):
    rule = Rule.of(precision, 0.02)
    assert (rule.limit(peer(0.5)), rule.needs_peer) == (0.02, False)


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, 1.0, 7.0, float("nan"), float("inf")])
def test_a_tolerance_that_decides_nothing_is_refused(tolerance):
    with pytest.raises(UserError, match="give a share of the logit scale above 0 and below 1"):
        Rule.of("fp32", tolerance)
