import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("1", 1),
        ("128k", 131072),
        ("1.5M", 1572864),
        ("9007199254740993", 2**53 + 1),  # no float64
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_sizes_are_exact(text, tokens):
    assert parse_size(text) == tokens


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.5", "k", "1kk", "", "nan", "inf", "1e3", str(2**63), 400 * "9"]
)
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError, match="is not a size"):
        parse_size(text)
