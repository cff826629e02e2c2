"""Prefill: full causal, and 4 sinks + 1020 window; rates on visible pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from tools.gpu import rivals
from tools.gpu.check import Problem, expect
from tools.gpu.compare import Bench, Prepare, Prepared, Task, compare
from tools.gpu.counts import attention_flops, visible_pairs
from tools.gpu.kernels import ROTATION_ON_WRITE
from tools.gpu.ours import Attention, Rotary
from tools.gpu.part import KV_HEADS, OURS, QUERY_HEADS, SINKS, WINDOW, Draw, Part, size_text
from tools.gpu.rotary import rotated, table

if TYPE_CHECKING:
    from torch import Tensor

ROTATING, RING, ONE_CALL = "ours, rotating", "ours, ring in chunks", "ours, one call"
_TOKENS = 16384  # short contexts come in batches of as many tokens
_CHUNK = 4096
_FULL_SIDES = (OURS, ROTATING, rivals.FLASH, rivals.CUDNN, rivals.FLASHINFER, rivals.FLEX)
_WINDOW_SIDES = (RING, ONE_CALL, rivals.FLEX)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillCase:
    """`context` tokens for each of `batch` sequences; `chunk` is that of the ring's calls."""

    context: int
    head_dim: int
    batch: int = 1
    query_heads: int = QUERY_HEADS
    kv_heads: int = KV_HEADS
    sinks: int = 0
    window: int = 0
    chunk: int = _CHUNK
    sides: tuple[str, ...] = _FULL_SIDES

    @property
    def label(self) -> str:
        return f"d{self.head_dim} {size_text(self.context)} batch {self.batch}"

    @property
    def flops(self) -> int:
        pairs = visible_pairs(self.context, self.context, sinks=self.sinks, window=self.window)
        heads = self.batch * self.query_heads
        return attention_flops(pairs, head_dim=self.head_dim, heads=heads)


def run(bench: Bench, cases: Sequence[PrefillCase], part: str = "prefill") -> None:
    for case in cases:
        task = Task(part=part, case=case.label, amount=case.flops, unit="TFLOP/s", cold=False)
        compare(bench, task, {} if bench.out_of_time() else _sides(bench, case))


def _sides(bench: Bench, case: PrefillCase) -> dict[str, Prepare]:
    draw = Draw(bench)
    shape = (case.batch, case.kv_heads, case.context, case.head_dim)
    problem = Problem(
        query=draw.normal(case.batch, case.query_heads, case.context, case.head_dim),
        key=draw.normal(*shape),
        value=draw.normal(*shape),
        sinks=case.sinks,
        window=case.window,
    )
    expected = cache(partial(expect, problem))
    own: dict[str, Prepare] = {
        OURS: partial(_one_call, bench, problem, expected),
        ONE_CALL: partial(_one_call, bench, problem, expected),
        ROTATING: partial(_rotating, bench, problem),
        RING: partial(_in_chunks, bench, problem, case.chunk, expected),
    }
    return {side: own.get(side) or rivals.prepare(side, problem, expected) for side in case.sides}


def _one_call(
    bench: Bench, problem: Problem, expected: rivals.Find, rotary: Rotary | None = None
) -> Prepared:
    """All tokens in one call, into a cache with a slot for each."""
    draw = Draw(bench)
    batch = problem.query.shape[0]
    call = Attention(
        query=problem.query,
        key=problem.key,
        value=problem.value,
        key_cache=draw.poisoned(*problem.key.shape),
        value_cache=draw.poisoned(*problem.key.shape),
        seen=draw.integers([0] * batch),
        new=draw.integers([problem.rows] * batch),
        output=draw.poisoned(*problem.query.shape),
        sinks=problem.sinks,
        window=problem.window,
        rotary=rotary,
        rotation=0 if rotary is None else ROTATION_ON_WRITE,
    )
    return Prepared(
        run=call.bind(bench.kernels), output=lambda _: call.output, expected=expected()
    )


def _rotating(bench: Bench, problem: Problem) -> Prepared:
    """Query and key come unrotated; the answer is that of both rotated by torch in float64."""
    rotary = table(problem.query.shape[3], bench.device)
    positions = Draw(bench).integers([list(range(problem.keys))])
    turned = Problem(
        query=rotated(problem.query, positions, rotary),
        key=rotated(problem.key, positions, rotary),
        value=problem.value,
    )
    return _one_call(bench, problem, partial(expect, turned), rotary)


def _in_chunks(bench: Bench, problem: Problem, chunk: int, expected: rivals.Find) -> Prepared:
    """As a session feeds it: calls of `chunk` tokens into sinks and a ring."""
    draw = Draw(bench)
    batch, _, rows, dim = problem.query.shape
    capacity = problem.sinks + problem.window + chunk - 1
    caches = [draw.poisoned(batch, problem.key.shape[1], capacity, dim) for _ in range(2)]
    calls = []
    for start in range(0, rows, chunk):
        query, key, value = (
            _part(x, start, chunk) for x in (problem.query, problem.key, problem.value)
        )
        call = Attention(
            query=query,
            key=key,
            value=value,
            key_cache=caches[0],
            value_cache=caches[1],
            seen=draw.integers([start] * batch),
            new=draw.integers([query.shape[2]] * batch),
            output=draw.poisoned(*query.shape),
            sinks=problem.sinks,
            window=problem.window,
            bounded=True,
        )
        calls.append((call, call.bind(bench.kernels)))

    def feed() -> None:
        for _, launch in calls:
            launch()

    def output(_: None) -> Tensor:
        import torch

        return torch.cat([call.output for call, _ in calls], dim=2)

    note = f"{len(calls)} calls of {chunk}"
    return Prepared(run=feed, output=output, expected=expected(), note=note)


def _part(x: Tensor, start: int, count: int) -> Tensor:
    return x[:, :, start : start + count].contiguous()


def _full(context: int, head_dim: int) -> PrefillCase:
    batch = max(1, _TOKENS // context)
    return PrefillCase(context=context, head_dim=head_dim, batch=batch)


def _windowed(context: int, head_dim: int) -> PrefillCase:
    return PrefillCase(
        context=context, head_dim=head_dim, sinks=SINKS, window=WINDOW, sides=_WINDOW_SIDES
    )


_CONTEXTS = (16, 128, 32, 4, 1, 64, 8, 2)  # times 1024, what is compared most comes first
FULL = Part(
    name="prefill",
    title="Prefill, full causal",
    weight=5,
    cases=[_full(context << 10, dim) for context in _CONTEXTS for dim in (128, 64)],
    quick=[_full(context << 10, 128) for context in (16, 4)],
    run=run,
)
WINDOWED = Part(
    name="windowed",
    title=f"Prefill, {SINKS} sinks + {WINDOW} window",
    weight=1.5,
    cases=[_windowed(context << 10, dim) for context in (32, 128) for dim in (128, 64)],
    quick=[_windowed(32 << 10, 128)],
    run=partial(run, part="windowed"),
)
