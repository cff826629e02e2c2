"""One case: every side is prepared, checked against float32, then timed; failures stay its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tools.bench.measure import spread
from tools.gpu.check import Expected, WrongResult, assert_right
from tools.gpu.kernels import Kernels
from tools.gpu.rows import FAILED, MEASURED, NOT_MEASURED, OUT_OF_TIME, Row, is_ours
from tools.gpu.timing import Run, Timer


class NotAvailable(Exception):
    """A side that this machine, library or version does not have; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where the measurements run and where their rows go; `deadline` is in monotonic seconds."""

    kernels: Kernels
    timer: Timer
    device: str
    dtype: str
    deadline: float
    emit: Callable[[Row], None]
    begin: Callable[[str, str], None]  # told the case and the side before it is measured

    def out_of_time(self) -> bool:
        return time.monotonic() >= self.deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A side ready to be timed. `output` gives from what `run` returned [B,Hq,S,D] to compare."""

    run: Run
    output: Callable[[Any], Any]
    expected: Expected
    note: str = ""


Prepare = Callable[[], Prepared]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one run of a case amounts to, FLOPs or bytes. `copy_rate`: bytes a second of a copy."""

    part: str
    case: str
    amount: int
    unit: str  # TFLOP/s or GB/s
    cold: bool
    copy_rate: float | None = None

    def rate(self, milliseconds: float) -> float:
        """In `unit`."""
        return self.amount / (milliseconds * 1e-3) / {"TFLOP/s": 1e12, "GB/s": 1e9}[self.unit]


def compare(bench: Bench, task: Task, sides: Mapping[str, Prepare]) -> None:
    """A row for every side."""
    for side, prepare in sides.items():
        if bench.out_of_time():
            bench.emit(_row(task, side, state=NOT_MEASURED, reason=OUT_OF_TIME))
        else:
            bench.begin(task.case, side)
            bench.emit(_side(bench, task, side, prepare))


def _side(bench: Bench, task: Task, side: str, prepare: Prepare) -> Row:
    """Other sides' errors are reasons not to measure them; ours are failures, as is a result that
    is wrong, whoever gave it."""
    try:
        prepared = prepare()
        assert_right(prepared.output(prepared.run()), prepared.expected)
        median, low, high = spread(times := bench.timer.measure(prepared.run, cold=task.cold))
    except NotAvailable as error:
        return _row(task, side, state=NOT_MEASURED, reason=str(error))
    except WrongResult as error:
        return _row(task, side, state=FAILED, reason=str(error))
    except Exception as error:
        state = FAILED if is_ours(side) else NOT_MEASURED
        return _row(task, side, state=state, reason=_first_line(error))
    rate = task.rate(median)
    share = None if task.copy_rate is None else rate * 1e9 / task.copy_rate
    return _row(
        task,
        side,
        state=MEASURED,
        note=prepared.note,
        median_ms=median,
        p10_ms=low,
        p90_ms=high,
        runs=len(times),
        rate=rate,
        unit=task.unit,
        share=share,
    )


def _row(task: Task, side: str, **values: Any) -> Row:
    return Row(part=task.part, case=task.case, side=side, **values)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]
