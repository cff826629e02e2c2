"""Decode over a full cache: one token, or the few of a speculative step, by copy bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from tools.gpu import rivals
from tools.gpu.bandwidth import copy_bytes, copy_rate
from tools.gpu.check import MOST_SEQUENCES, Problem, WrongResult, expect, sample
from tools.gpu.compare import Bench, Prepare, Prepared, Task, compare
from tools.gpu.counts import cache_bytes
from tools.gpu.ours import Attention, Quantised
from tools.gpu.part import KV_HEADS, OURS, QUERY_HEADS, Draw, Part, size_text

if TYPE_CHECKING:
    from torch import Tensor

INT8, FLOAT8 = "ours, int8 cache", "ours, float8 cache"
_TYPES = {INT8: "int8", FLOAT8: "float8"}
_SIDES = (OURS, rivals.FLASH, rivals.FLASHINFER, rivals.FLEX, rivals.CUDNN, INT8, FLOAT8)
_STEP_SIDES = (OURS, rivals.FLASH, rivals.FLEX)
_PART = "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCase:
    """`rows` new tokens at the end of `keys` for each of `batch` sequences."""

    keys: int
    batch: int
    rows: int = 1
    head_dim: int = 128
    query_heads: int = QUERY_HEADS
    kv_heads: int = KV_HEADS
    sides: tuple[str, ...] = _SIDES

    @property
    def label(self) -> str:
        step = "" if self.rows == 1 else f" {self.rows} tokens"
        return f"{size_text(self.keys)} batch {self.batch}{step}"

    def bytes(self, element_bytes: int) -> int:
        """Of all sequences' keys and values."""
        return self.batch * cache_bytes(
            self.keys,
            head_dim=self.head_dim,
            kv_heads=self.kv_heads,
            element_bytes=element_bytes,
        )


def run(bench: Bench, cases: Sequence[DecodeCase]) -> None:
    rate = copy_rate(bench, _PART, copy_bytes(bench.device))
    for case in cases:
        if not bench.out_of_time():
            _case(bench, case, rate)


def _case(bench: Bench, case: DecodeCase, rate: float) -> None:
    """In a function of its own: its tensors are gone before the next case allocates."""
    for element_bytes, chosen in _by_element(bench, _sides(bench, case)).items():
        task = Task(
            part=_PART,
            case=case.label,
            amount=case.bytes(element_bytes),
            unit="GB/s",
            cold=True,
            copy_rate=rate,
        )
        compare(bench, task, chosen)


def _by_element(bench: Bench, sides: dict[str, Prepare]) -> dict[int, dict[str, Prepare]]:
    """Sides by the bytes of their cache's elements."""
    own = 4 if bench.dtype == "float32" else 2
    return {
        own: {side: prepare for side, prepare in sides.items() if side not in _TYPES},
        1: {side: prepare for side, prepare in sides.items() if side in _TYPES},
    }


def _sides(bench: Bench, case: DecodeCase) -> dict[str, Prepare]:
    draw = Draw(bench)
    shape = (case.batch, case.kv_heads, case.keys, case.head_dim)
    problem = Problem(
        query=draw.normal(case.batch, case.query_heads, case.rows, case.head_dim),
        key=draw.normal(*shape),
        value=draw.normal(*shape),
    )
    expected = cache(partial(expect, problem))
    own: dict[str, Prepare] = {OURS: partial(_in_place, bench, problem, expected)}
    own |= {side: partial(_quantised, bench, problem, _TYPES[side]) for side in _TYPES}
    return {side: own.get(side) or rivals.prepare(side, problem, expected) for side in case.sides}


def step(
    bench: Bench,
    problem: Problem,
    caches: tuple[Tensor, Tensor],
    quantised: Quantised | None = None,
) -> Attention:
    """The call that adds the last rows of `problem` to `caches`, which hold the rest."""
    draw = Draw(bench)
    batch, seen = problem.query.shape[0], problem.keys - problem.rows
    return Attention(
        query=problem.query,
        key=problem.key[:, :, seen:].contiguous(),
        value=problem.value[:, :, seen:].contiguous(),
        key_cache=caches[0],
        value_cache=caches[1],
        seen=draw.integers([seen] * batch),
        new=draw.integers([problem.rows] * batch),
        output=draw.poisoned(*problem.query.shape),
        quantised=quantised,
    )


def _in_place(bench: Bench, problem: Problem, expected: rivals.Find) -> Prepared:
    """The cache is the problem's own keys and values; the call has to write the newest."""
    import torch

    answers = expected()
    call = step(bench, problem, (problem.key, problem.value))
    launch = call.bind(bench.kernels)
    seen = problem.keys - problem.rows
    pairs = [(problem.key[:, :, seen:], call.key), (problem.value[:, :, seen:], call.value)]
    try:
        for slots, _ in pairs:
            slots.fill_(float("nan"))
        launch()
        if not all(torch.equal(slots, given) for slots, given in pairs):
            raise WrongResult("the new keys and values are not in their slots")
    finally:
        for slots, given in pairs:
            slots.copy_(given)
    return Prepared(run=launch, output=lambda _: call.output, expected=answers)


def _quantised(bench: Bench, problem: Problem, cache_type: str) -> Prepared:
    """The answer is that of the values which a cache of this type holds."""
    import torch

    keys = quantise(problem.key, cache_type)
    values = quantise(problem.value, cache_type)
    sequences = sample(int(problem.query.shape[0]), MOST_SEQUENCES)
    answers = expect(
        Problem(
            query=problem.query[sequences],
            key=_held(keys, sequences).to(problem.key.dtype),
            value=_held(values, sequences).to(problem.key.dtype),
        )
    )
    for stored, _ in (keys, values):
        stored.view(torch.uint8)[:, :, problem.keys - problem.rows :] = 0
    call = step(
        bench,
        problem,
        (keys[0], values[0]),
        Quantised(cache_type=cache_type, key_scale=keys[1], value_scale=values[1]),
    )
    return Prepared(
        run=call.bind(bench.kernels),
        output=lambda _: call.output[sequences],
        expected=answers,
    )


def quantise(x: Tensor, cache_type: str) -> tuple[Tensor, Tensor]:
    """(x / scale in one byte an element, scales [Hkv]) of x [B,Hkv,N,D], one sequence at a time;
    the largest element of a head is the type's largest number."""
    import torch

    kind = {"int8": torch.int8, "float8": torch.float8_e4m3fn}[cache_type]
    largest = {"int8": 127.0, "float8": 448.0}[cache_type]
    scales = torch.stack([y.abs().amax((1, 2)) for y in x]).amax(0).float() / largest
    stored = torch.empty(x.shape, dtype=kind, device=x.device)
    for sequence, target in zip(x, stored, strict=True):
        scaled = sequence.float() / scales[:, None, None]
        target.copy_(scaled.round() if cache_type == "int8" else scaled)
    return stored, scales


def _held(quantised: tuple[Tensor, Tensor], sequences: list[int]) -> Tensor:
    """What the stored bytes of some sequences mean."""
    import torch

    stored, scales = quantised
    return torch.stack([stored[b].float() * scales[:, None, None] for b in sequences])


_BATCHES = (1, 16, 64, 8, 32, 4, 2)
_LARGE = [DecodeCase(keys=keys << 10, batch=batch) for batch in _BATCHES for keys in (32, 128)]
_STEPS = [
    DecodeCase(keys=32 << 10, batch=batch, rows=rows, sides=_STEP_SIDES)
    for rows in (4, 16)
    for batch in (1, 8)
]
PART = Part(
    name=_PART,
    title="Decode over a full cache, head dimension 128",
    weight=4,
    cases=[*_LARGE[:6], *_STEPS, *_LARGE[6:]],
    quick=[DecodeCase(keys=32 << 10, batch=batch) for batch in (1, 16)],
    run=run,
)
