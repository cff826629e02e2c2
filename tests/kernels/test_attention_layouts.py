"""q, k, v and y as projections write and read them; oracles: ops.reference in float64, and to the
last bit the same call of [batch, head, token, dim]."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.ops.reference import sink_window_attention
from ctx_export.ops.spec import Layout, Rotation
from tests.kernels.attention_cases import Shape, by_token, laid_out, make_case, run_case
from tests.kernels.kernel_library import DTYPES
from tests.kernels.test_sink_window_attention import allowed_error

SHAPES = {
    "prefill": {
        "seen": (0, 7, 40),
        "new": (19, 0, 17),
        "rows": 19,
        "capacity": 59,
        "dim": 80,
        "kv_heads": 2,
        "groups": 3,
        "rotary_dim": 6,
        "rotation": Rotation.ON_WRITE,
        "head_sink": True,
    },
    "ring": {
        "seen": (0, 3, 50),
        "new": (5, 4, 5),
        "rows": 5,
        "capacity": 17,
        "dim": 32,
        "kv_heads": 2,
        "sinks": 3,
        "window": 10,
        "bounded": True,
        "rotary_dim": 32,
        "rotation": Rotation.QUERY_AND_KEYS_ON_READ,
        "interleaved": True,
        "sink_position": 12,
    },
    "decode with split keys": {
        "seen": (599, 0),
        "new": (1, 1),
        "rows": 1,
        "capacity": 600,
        "kv_heads": 2,
        "groups": 4,
    },
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("layout", [Layout.TOKEN_MAJOR, Layout.PACKED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_differ_in_nothing_but_where_elements_lie(library, name, layout, dtype):
    case = make_case(Shape(**SHAPES[name], dtype=dtype))
    given = laid_out(case, layout)
    y, *presents = run_case(library, given, dtype, workspace=True)
    expected, *caches = sink_window_attention(given)
    assert y.shape == expected.shape
    error = np.abs(y.astype(np.float64) - expected).max()
    assert error <= allowed_error(case, dtype, sink_window_attention(case)[0], caches)
    same, *same_presents = run_case(library, case, dtype, workspace=True)
    for got, want in zip((y, *presents), (by_token(same), *same_presents), strict=True):
        np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))
