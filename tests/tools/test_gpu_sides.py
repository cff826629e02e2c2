"""What is compared is compared fairly: masks, other libraries' layouts, wrong answers noticed."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tools.gpu import decode, rivals
from tools.gpu.check import Problem, WrongResult, assert_right, attend, expect
from tools.gpu.compare import Bench, NotAvailable, Prepared, Task, compare
from tools.gpu.kernels import KernelError
from tools.gpu.rows import FAILED, MEASURED, NOT_MEASURED, OUT_OF_TIME
from tools.gpu.timing import WallTimer

torch = pytest.importorskip("torch")
flex = pytest.importorskip("torch.nn.attention.flex_attention")


def problem(rows=40, keys=40, *, batch=2, dtype="float32", **mask):
    draw = torch.Generator().manual_seed(3)

    def normal(heads, tokens):
        x = torch.randn(batch, heads, tokens, 16, generator=draw)
        return x.to(getattr(torch, dtype))

    return Problem(query=normal(4, rows), key=normal(2, keys), value=normal(2, keys), **mask)


def by_sdpa(given):
    """[B,Hq,S,D] by PyTorch's own attention with the mask written out."""
    rows, keys = given.rows, given.keys
    i = torch.arange(keys - rows, keys)[:, None]
    j = torch.arange(keys)[None]
    mask = j <= i
    if given.window:
        mask &= (i - j < given.window) | (j < given.sinks)
    return torch.nn.functional.scaled_dot_product_attention(
        given.query, given.key, given.value, attn_mask=mask, enable_gqa=True
    )


MASKS = [{}, {"window": 7}, {"window": 7, "sinks": 3}, {"window": 130, "sinks": 129}]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("rows", "keys"), [(40, 40), (1, 300), (5, 300), (300, 300)])
def test_the_gate_lets_pytorchs_own_answer_through(dtype, mask, rows, keys):
    given = problem(rows, keys, dtype=dtype, **mask)
    assert_right(by_sdpa(given), expect(given))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("mask", "other"),
    [
        ({"window": 20, "sinks": 3}, {"window": 21, "sinks": 3}),
        ({"window": 20, "sinks": 3}, {"window": 20, "sinks": 2}),
        ({}, {"window": 39}),
    ],
)
def test_the_gate_notices_another_mask(dtype, mask, other):
    given = problem(dtype=dtype, **mask)
    with pytest.raises(WrongResult, match=r"row \d+ of sequence 0 is off"):
        assert_right(by_sdpa(replace(given, **({"sinks": 0} | other))), expect(given))


def test_the_gate_notices_nan_in_one_element():
    given = problem()
    answer = by_sdpa(given)
    answer[1, 2, 39, 5] = math.nan
    with pytest.raises(WrongResult, match="row 39 of sequence 1"):
        assert_right(answer, expect(given))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("rows", "keys"), [(1, 300), (16, 400), (130, 130), (256, 256), (300, 700), (700, 700)]
)
def test_the_block_mask_is_flexattentions_own(rows, keys, mask):
    given = problem(rows, keys, **mask)
    found = rivals.block_mask(given)
    window, sinks, offset = given.window, given.sinks, keys - rows

    def visible(b, h, i, j):
        i = i + offset
        return (j <= i) & ((i - j < window) | (j < sinks) if window else j <= i)

    own = flex.create_block_mask(visible, None, None, rows, keys, device="cpu")
    assert torch.equal(found.to_dense(), own.to_dense())
    assert found.seq_lengths == own.seq_lengths
    i, j = torch.arange(rows)[:, None], torch.arange(keys)[None]
    assert torch.equal(found.mask_mod(0, 0, i, j), own.mask_mod(0, 0, i, j))
    whole = [_blocks(x.full_kv_num_blocks, x.full_kv_indices) for x in (found, own)]
    assert whole[0] == whole[1]


def _blocks(counts, indices):
    """The set of blocks in each row of a mask."""
    pairs = zip(counts[0, 0], indices[0, 0], strict=True)
    return [set(row[: int(count)].tolist()) for count, row in pairs]


def fake_flashinfer(monkeypatch):
    """FlashInfer's two wrappers by `attend`, in the layouts that its documentation gives."""

    class Ragged:
        def __init__(self, workspace, layout):
            assert workspace.dtype == torch.uint8 and layout == "NHD"

        def plan(self, q_starts, kv_starts, heads, kv_heads, dim, *, causal, q_data_type):
            assert (
                causal and q_starts.dtype == torch.int32 and (heads, kv_heads, dim) == (4, 2, 16)
            )
            self.starts = q_starts.tolist(), kv_starts.tolist()

        def run(self, q, k, v):
            answers = []
            for (a, b), (c, d) in zip(*map(_pairs, self.starts), strict=True):
                mask = torch.ones(b - a, d - c, dtype=torch.bool).tril()
                parts = [x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d])]
                answers.append(attend(*parts, mask, 0.25).transpose(0, 1))
            return torch.cat(answers)

    class Paged:
        def __init__(self, workspace, layout, use_tensor_cores):
            assert layout == "HND"

        def plan(self, indptr, indices, last, heads, kv_heads, dim, page, **types):
            assert types == {"q_data_type": torch.float32, "kv_data_type": torch.float32}
            self.table = list(zip(_pairs(indptr.tolist()), last.tolist(), strict=True))
            self.indices, self.page = indices.tolist(), page

        def run(self, q, cache):
            answers = []
            for b, ((first, end), last) in enumerate(self.table):
                (page,) = self.indices[first:end]
                k, v = (x[page, :, :last] for x in cache)
                assert cache[0].shape[2] == self.page
                mask = torch.ones(1, last, dtype=torch.bool)
                answers.append(attend(q[b][:, None], k, v, mask, 0.25)[:, 0])
            return torch.stack(answers)

    module = SimpleNamespace(
        BatchPrefillWithRaggedKVCacheWrapper=Ragged, BatchDecodeWithPagedKVCacheWrapper=Paged
    )
    monkeypatch.setitem(sys.modules, "flashinfer", module)
    monkeypatch.setattr(rivals, "find_spec", lambda name: module)


def _pairs(starts):
    return list(itertools.pairwise(starts))


@pytest.mark.parametrize(("rows", "keys"), [(40, 40), (1, 50)])
def test_flashinfer_gets_its_layouts(monkeypatch, rows, keys):
    fake_flashinfer(monkeypatch)
    given = problem(rows, keys, batch=3)
    side = rivals.prepare(rivals.FLASHINFER, given, lambda: expect(given))()
    assert_right(side.output(side.run()), side.expected)


def unavailable(name, given):
    with pytest.raises(NotAvailable) as caught:
        rivals.prepare(name, given, lambda: expect(given))()
    return str(caught.value)


def test_a_library_that_is_not_there_says_so(monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    assert unavailable(rivals.FLASHINFER, problem()) == "flashinfer is not installed"
    assert unavailable(rivals.FLASH, problem(window=4)) == "has no sliding window"
    assert unavailable(rivals.CUDNN, problem()).startswith("refuses: ")


@pytest.mark.parametrize("cache_type", ["int8", "float8"])
def test_quantised_values_are_the_nearest_of_their_type(cache_type):
    x = torch.randn(3, 2, 50, 16, generator=torch.Generator().manual_seed(1))
    stored, scales = decode.quantise(x, cache_type)
    meant = stored.float() * scales[:, None, None]
    largest = x.abs().amax((0, 2, 3))
    if cache_type == "int8":
        assert (meant - x).abs().max() <= (largest / 127 / 2).max() * 1.0001
        assert stored.int().abs().max() == 127
    else:  # 3 bits of mantissa; below 2^-6 of the type the step is 2^-9 of it
        step = torch.maximum(x.abs() * 2.0**-4, (largest / 448)[:, None, None] * 2.0**-10)
        assert ((meant - x).abs() <= step * 1.0001).all()
        assert stored.float().abs().max() == 448


def bench(rows, deadline=math.inf):
    return Bench(
        kernels=None,
        timer=WallTimer(1),
        device="cpu",
        dtype="float32",
        deadline=deadline,
        emit=rows.append,
        begin=lambda case, side: None,
    )


def sides_of(outcome):
    """A side that answers, raises what `outcome` is, or answers wrongly."""
    given = problem()
    answer = by_sdpa(given)

    def prepare():
        if isinstance(outcome, Exception):
            raise outcome
        return Prepared(run=lambda: answer * outcome, output=lambda x: x, expected=expect(given))

    return prepare


TASK = Task(part="p", case="c", amount=10**9, unit="GB/s", cold=False, copy_rate=1e12)


@pytest.mark.parametrize(
    ("side", "outcome", "state", "reason"),
    [
        ("ours", 1.0, MEASURED, ""),
        ("other", 1.0, MEASURED, ""),
        ("ours", 1.1, FAILED, "is off by"),
        ("other", 1.1, FAILED, "is off by"),
        ("ours", KernelError("head dimension 12"), FAILED, "KernelError: head dimension 12"),
        ("ours, rotating", NotAvailable("older"), NOT_MEASURED, "older"),
        (
            "other",
            RuntimeError("out of memory\nmore"),
            NOT_MEASURED,
            "RuntimeError: out of memory",
        ),
        ("ours", RuntimeError("out of memory"), FAILED, "RuntimeError: out of memory"),
    ],
)
def test_every_outcome_is_a_row_of_its_own(side, outcome, state, reason):
    rows = []
    compare(bench(rows), TASK, {side: sides_of(outcome), "next": sides_of(1.0)})
    assert [row.side for row in rows] == [side, "next"]
    assert rows[0].state == state and reason in rows[0].reason
    assert rows[1].state == MEASURED


def test_a_rate_is_the_amount_over_the_median():
    rows = []
    compare(bench(rows), TASK, {"ours": sides_of(1.0)})
    (row,) = rows
    assert row.rate == pytest.approx(1.0 / (row.median_ms * 1e-3))
    assert row.share == pytest.approx(row.rate / 1000)


def test_past_the_deadline_nothing_is_prepared():
    rows = []
    compare(bench(rows, deadline=0.0), TASK, {"ours": sides_of(AssertionError("prepared"))})
    assert [(row.state, row.reason) for row in rows] == [(NOT_MEASURED, OUT_OF_TIME)]
