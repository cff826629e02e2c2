"""ScaledRotaryEmbedding at large sizes: bytes read and written by copy bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tools.gpu.bandwidth import copy_bytes, copy_rate
from tools.gpu.check import MOST_SEQUENCES, Expected, expectation, sample
from tools.gpu.compare import Bench, Prepared, Task, compare
from tools.gpu.ours import Rotation
from tools.gpu.part import OURS, Draw, Part, size_text
from tools.gpu.rotary import rotated, table

_PART = "rotation"
_FAR = 1 << 20  # positions begin there
_MOST_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationCase:
    """x [batch, heads, rows, head_dim], all of it rotated."""

    rows: int
    heads: int
    batch: int = 1
    head_dim: int = 128
    interleaved: bool = False
    sides: tuple[str, ...] = (OURS,)

    @property
    def label(self) -> str:
        pairs = "interleaved" if self.interleaved else "halves"
        heads = f"{self.heads} heads"
        return f"d{self.head_dim} {heads} {size_text(self.rows)} batch {self.batch} {pairs}"


def run(bench: Bench, cases: Sequence[RotationCase]) -> None:
    rate = copy_rate(bench, _PART, copy_bytes(bench.device))
    element_bytes = 4 if bench.dtype == "float32" else 2
    for case in cases:
        elements = case.batch * case.heads * case.rows * case.head_dim
        task = Task(
            part=_PART,
            case=case.label,
            amount=2 * elements * element_bytes,
            unit="GB/s",
            cold=True,
            copy_rate=rate,
        )
        compare(bench, task, {OURS: partial(_prepare, bench, case)})


def _prepare(bench: Bench, case: RotationCase) -> Prepared:
    draw = Draw(bench)
    shape = (case.batch, case.heads, case.rows, case.head_dim)
    positions = [[_FAR + 7 * b + row for row in range(case.rows)] for b in range(case.batch)]
    call = Rotation(
        x=draw.normal(*shape),
        positions=draw.integers(positions),
        y=draw.poisoned(*shape),
        rotary=table(case.head_dim, bench.device, interleaved=case.interleaved),
    )
    return Prepared(run=call.bind(bench.kernels), output=lambda _: call.y, expected=_expect(call))


def _expect(call: Rotation) -> Expected:
    """Sampled rows by torch in float64, rounded once to the precision."""
    sequences = sample(call.x.shape[0], MOST_SEQUENCES)
    rows = sample(call.x.shape[2], _MOST_ROWS)
    x, positions = call.x[sequences][:, :, rows], call.positions[sequences][:, rows]
    exact, rounded = (rotated(values, positions, call.rotary) for values in (x.float(), x))
    pairs = list(zip(exact, rounded, strict=True))
    return expectation(sequences, rows, pairs, call.x)


PART = Part(
    name=_PART,
    title="ScaledRotaryEmbedding",
    weight=0.7,
    cases=[
        RotationCase(rows=rows << 10, heads=heads, head_dim=dim, interleaved=interleaved)
        for rows, heads in ((128, 32), (32, 32), (8, 8))
        for dim in (128, 64)
        for interleaved in (False, True)
    ],
    quick=[RotationCase(rows=32 << 10, heads=32)],
    run=run,
)
