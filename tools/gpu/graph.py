"""A decode step captured in a CUDA graph, replayed with another `seen`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tools.gpu.check import Problem, assert_right, expect
from tools.gpu.compare import Bench, Prepared, Task, compare
from tools.gpu.counts import cache_bytes
from tools.gpu.decode import step
from tools.gpu.part import KV_HEADS, QUERY_HEADS, Draw, Part, size_text

CALLED, REPLAYED = "ours", "ours, graph replayed"
_PART = "graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCase:
    """Captured where `earlier` tokens lie in the cache, replayed where `keys` − 1 do."""

    keys: int
    earlier: int
    batch: int = 1
    head_dim: int = 128
    query_heads: int = QUERY_HEADS
    kv_heads: int = KV_HEADS
    sides: tuple[str, ...] = (CALLED, REPLAYED)

    @property
    def label(self) -> str:
        return f"{size_text(self.keys)} captured at {size_text(self.earlier)} batch {self.batch}"


def run(bench: Bench, cases: Sequence[GraphCase]) -> None:
    for case in cases:
        element_bytes = 4 if bench.dtype == "float32" else 2
        amount = case.batch * cache_bytes(
            case.keys, head_dim=case.head_dim, kv_heads=case.kv_heads, element_bytes=element_bytes
        )
        task = Task(part=_PART, case=case.label, amount=amount, unit="GB/s", cold=True)
        compare(
            bench,
            task,
            {CALLED: partial(_called, bench, case), REPLAYED: partial(_replayed, bench, case)},
        )


def _called(bench: Bench, case: GraphCase) -> Prepared:
    problem = _problem(bench, case)
    expected = expect(problem)
    call = step(bench, problem, (problem.key, problem.value))
    return Prepared(run=call.bind(bench.kernels), output=lambda _: call.output, expected=expected)


def _replayed(bench: Bench, case: GraphCase) -> Prepared:
    """Replayed and checked at the `seen` of the capture; then `seen` is the case's own."""
    problem = _problem(bench, case)
    expected = expect(problem)
    call = step(bench, problem, (problem.key, problem.value))
    last, slot = call.seen.clone(), slice(case.earlier, case.earlier + 1)
    pairs = [(x[:, :, slot], x[:, :, slot].clone()) for x in (problem.key, problem.value)]
    call.seen.fill_(case.earlier)
    replay = capture(call.bind(bench.kernels), bench.device)
    call.output.fill_(float("nan"))
    replay()
    assert_right(call.output, expect(_beginning(problem, case.earlier + 1)))
    for slots, before in pairs:
        slots.copy_(before)
    call.seen.copy_(last)
    call.output.fill_(float("nan"))
    return Prepared(run=replay, output=lambda _: call.output, expected=expected)


def _beginning(problem: Problem, keys: int) -> Problem:
    """The same queries at the end of the first `keys` keys."""
    return replace(problem, key=problem.key[:, :, :keys], value=problem.value[:, :, :keys])


def capture(launch: Callable[[], None], device: str) -> Callable[[], Any]:
    """A graph of one launch, after one outside of it; on a CPU the launch itself."""
    launch()
    if device != "cuda":
        return launch
    import torch

    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


def _problem(bench: Bench, case: GraphCase) -> Problem:
    draw = Draw(bench)
    shape = (case.batch, case.kv_heads, case.keys, case.head_dim)
    return Problem(
        query=draw.normal(case.batch, case.query_heads, 1, case.head_dim),
        key=draw.normal(*shape),
        value=draw.normal(*shape),
    )


PART = Part(
    name=_PART,
    title="A captured decode step, head dimension 128",
    weight=0.5,
    cases=[GraphCase(keys=32 << 10, earlier=1000), GraphCase(keys=8192, earlier=1000, batch=8)],
    quick=[GraphCase(keys=8192, earlier=1000)],
    run=run,
)
