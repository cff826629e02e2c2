"""Every measurement of tools.gpu runs here, on a CPU, at sizes that measure nothing.

The host library stands in for the device's and the wall clock for CUDA events; the answers that
each side has to give before it is timed are PyTorch's in float32.
"""

from __future__ import annotations

import math

import pytest

from tests.kernels.host_build import build
from tools.gpu import decode, graph, prefill, rivals, rotation, streaming
from tools.gpu.compare import Bench
from tools.gpu.kernels import Kernels
from tools.gpu.rows import MEASURED, NOT_MEASURED
from tools.gpu.timing import WallTimer

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]
DTYPES = ("float32", "bfloat16")
OPTIONAL = {prefill.ROTATING, decode.INT8, decode.FLOAT8}


@pytest.fixture(scope="module")
def kernels():
    return Kernels(build("ctx_kernels_host"))


@pytest.fixture(params=DTYPES)
def bench(kernels, request):
    """A bench whose rows are in the list `rows` of the fixture's other half."""
    rows = []
    return rows, Bench(
        kernels=kernels,
        timer=WallTimer(2),
        device="cpu",
        dtype=request.param,
        deadline=math.inf,
        emit=rows.append,
        begin=lambda case, side: None,
    )


def assert_measured(rows, sides, kernels):
    """Each of `sides` once, with figures; an optional one may be missing from an old library."""
    assert [row.side for row in rows] == list(sides)
    for row in rows:
        if row.side in OPTIONAL and not kernels.has_workspace:
            assert (row.state, row.share) == (NOT_MEASURED, None) and "older" in row.reason
        else:
            assert row.state == MEASURED, row
            assert row.runs == 2 and row.rate > 0 and 0 < row.p10_ms <= row.median_ms <= row.p90_ms


SMALL = {"query_heads": 4, "kv_heads": 2}


@pytest.mark.parametrize(("head_dim", "context", "batch"), [(64, 33, 2), (128, 70, 1)])
def test_full_prefill(bench, kernels, head_dim, context, batch):
    rows, where = bench
    sides = (prefill.OURS, prefill.ROTATING, rivals.FLASH, rivals.FLEX)
    case = prefill.PrefillCase(
        context=context, head_dim=head_dim, batch=batch, sides=sides, **SMALL
    )
    prefill.run(where, [case])
    assert_measured(rows, sides, kernels)
    assert {row.unit for row in rows if row.rate} == {"TFLOP/s"}


def test_windowed_prefill_in_chunks_and_in_one_call(bench, kernels):
    rows, where = bench
    sides = (prefill.RING, prefill.ONE_CALL, rivals.FLEX)
    case = prefill.PrefillCase(
        context=90, head_dim=64, sinks=3, window=20, chunk=16, sides=sides, **SMALL
    )
    prefill.run(where, [case], part="windowed")
    assert_measured(rows, sides, kernels)
    assert rows[0].note == "6 calls of 16" and {row.part for row in rows} == {"windowed"}


@pytest.mark.parametrize(("new", "batch"), [(1, 1), (1, 5), (4, 2), (16, 1)])
def test_decode(bench, kernels, new, batch):
    rows, where = bench
    sides = (decode.OURS, rivals.FLASH, rivals.FLEX)
    if new == 1:
        sides += (decode.INT8, decode.FLOAT8)
    case = decode.DecodeCase(keys=150, batch=batch, rows=new, sides=sides, **SMALL)
    decode.run(where, [case])
    assert (rows[0].case, rows[0].share) == ("copy", 1.0)
    assert_measured(rows[1:], sides, kernels)
    assert all(row.share > 0 for row in rows if row.state == MEASURED)


def test_streaming_decode_near_and_far(bench, kernels):
    rows, where = bench
    cases = [
        streaming.StreamingCase(
            position=position, batch=2, sinks=3, window=20, chunk=4, head_dim=64, **SMALL
        )
        for position in (30, 1000, 1 << 33)
    ]
    streaming.run(where, cases)
    assert_measured(rows, [streaming.OURS] * 3, kernels)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation(bench, kernels, interleaved):
    rows, where = bench
    case = rotation.RotationCase(rows=90, heads=3, batch=2, head_dim=64, interleaved=interleaved)
    rotation.run(where, [case])
    assert_measured(rows[1:], [rotation.OURS], kernels)


def test_a_step_repeated_with_another_seen(bench, kernels):
    rows, where = bench
    case = graph.GraphCase(keys=70, earlier=20, batch=2, head_dim=64, **SMALL)
    graph.run(where, [case])
    assert_measured(rows, case.sides, kernels)
