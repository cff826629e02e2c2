from __future__ import annotations

import numpy as np
import pytest

from ctx_export.scaling import find, resolve


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("factor", [1.0, 2.5, 8.0, 512.0])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_equals_transformers(head_dim, factor, share, make_shape, transformers_table, same_table):
    shape = make_shape(head_dim, rotary_dim=int(head_dim * share) // 2 * 2)
    resolved = resolve("linear", shape, 1 << 21, factor=factor)
    same_table(resolved.table, transformers_table("linear", shape, factor=factor))


def test_factor_defaults_to_target_over_original(make_shape):
    shape = make_shape(64, original=2048)
    resolved = resolve("linear", shape, 8192)
    assert resolved.factor == 4.0
    plain = resolve("none", shape, 8192).table.inv_freq
    # A quarter is exact in binary, so the two tables differ by exactly that.
    np.testing.assert_array_equal(resolved.table.inv_freq * 4, plain)


def test_alias_pi():
    assert find("pi") is find("linear")
