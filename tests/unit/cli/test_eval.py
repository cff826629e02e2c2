import click
import pytest

from ctx_export.cli.eval import _numbers, _shares, main
from ctx_export.core.errors import UserError

PARAMETER = click.Option(["--depths"])
CONTEXT = click.Context(main)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,25,100", (0.0, 0.25, 1.0)),
        ("50", tuple(index / 49 for index in range(50))),
        ("2", (0.0, 1.0)),
        ("1", (0.01,)),
        ("12.5", (0.125,)),
        ("0", (0.0,)),
        ("50%", (0.5,)),
        ("0%, 50%", (0.0, 0.5)),
    ],
)
def test_depths_are_percentages_and_one_whole_number_is_how_many(text, expected):
    assert _shares(CONTEXT, PARAMETER, text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["a", "1;2", "inf", "nan", "0,inf", "%"])
def test_other_depths_are_refused(text):
    with pytest.raises(UserError, match="give percentages"):
        _shares(CONTEXT, PARAMETER, text)


def test_a_depth_count_that_no_picture_shows_is_refused():
    with pytest.raises(UserError, match="at most 1000"):
        _shares(CONTEXT, PARAMETER, "100000000000")


def test_factors_are_numbers_above_1():
    parameter = click.Option(["--factors"])
    assert _numbers(CONTEXT, parameter, "2, 4,8.5") == (2.0, 4.0, 8.5)
    assert _numbers(CONTEXT, parameter, None) == ()
    for text in ("0.5", "two", "2,-1", "nan", "inf", "1", "1,2"):
        with pytest.raises(UserError, match="--factors is"):
            _numbers(CONTEXT, parameter, text)
