from __future__ import annotations

import math

import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import resolve


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("factor", [1.0, 8.0, 32.0])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (0.5, 6.0)])
@pytest.mark.parametrize("original", [256, 8192])
def test_equals_transformers(
    head_dim, factor, share, low, high, original, make_shape, transformers_table, same_table
):
    shape = make_shape(
        head_dim, rotary_dim=int(head_dim * share), theta=5e5, original=original, maximum=131072
    )
    given = {"low_freq_factor": low, "high_freq_factor": high}
    resolved = resolve("llama3", shape, 131072, factor=factor, parameters=given)
    same_table(resolved.table, transformers_table("llama3", shape, factor=factor, **given))


def test_defaults_are_llama_3_1(make_shape, transformers_table, same_table):
    shape = make_shape(128, theta=5e5, original=8192, maximum=131072)
    expected = transformers_table(
        "llama3", shape, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0
    )
    same_table(resolve("llama3", shape, 65536).table, expected)


def test_each_band_by_its_wavelength(make_shape):
    """The three cases of the definition, decided pair by pair in plain Python."""
    shape = make_shape(128, theta=5e5, original=8192)
    table = resolve("llama3", shape, 65536).table
    bands = set()
    for i, got in enumerate(table.inv_freq):
        frequency = 5e5 ** (-2 * i / 128)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            band, want = "kept", frequency
        elif wavelength > 8192 / 1:
            band, want = "divided", frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            band, want = "between", (1 - smooth) * frequency / 8 + smooth * frequency
        bands.add(band)
        assert got == pytest.approx(want, rel=1e-7)
    assert bands == {"kept", "divided", "between"}


@pytest.mark.parametrize(("low", "high"), [(4, 4), (5, 4), (0, 4)])
def test_a_band_without_width_is_refused(low, high, make_shape):
    given = {"low_freq_factor": low, "high_freq_factor": high}
    with pytest.raises(UserError, match=f"low_freq_factor is {low} and high_freq_factor {high}"):
        resolve("llama3", make_shape(), 8192, parameters=given)
