"""A whole run: tests, sanitizers, measurements and the engine, each within its share of time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tools.gpu import machine
from tools.gpu.budget import Budget, isolated
from tools.gpu.child import PartResult, run_part
from tools.gpu.engine import FAILED as ENGINE_FAILED
from tools.gpu.engine import Attempt, try_engine
from tools.gpu.library import Library
from tools.gpu.part import Part
from tools.gpu.parts import PARTS
from tools.gpu.record import PartRecord, Record
from tools.gpu.rows import filled
from tools.gpu.suite import SANITIZERS, TESTS_FAILED, Outcome, run_sanitizer, run_tests

T = TypeVar("T")
_TESTS, _ENGINE = "tests", "engine"
_TESTS_WEIGHT, _SANITIZER_WEIGHT, _ENGINE_WEIGHT = 4.0, 0.5, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command was asked for; `seconds` are left for everything but the build."""

    library: Library
    command: str
    commit: str
    date: str
    quick: bool
    engine: Path | None
    seconds: float


def run(options: Options, say: Callable[[str], None]) -> Record:
    """Every part, whatever happens to the others."""
    return _Session(options, say).run()


class _Session:
    """One run's budget and the errors so far."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        weights = {_TESTS: _TESTS_WEIGHT}
        weights |= {part.name: part.weight for part in PARTS}
        weights |= dict.fromkeys(SANITIZERS, _SANITIZER_WEIGHT)
        weights[_ENGINE] = _ENGINE_WEIGHT
        self._options = options
        self._say = say
        self._budget = Budget(options.seconds, weights)
        self._errors: list[str] = []

    def run(self) -> Record:
        started = time.monotonic()
        options, library = self._options, self._options.library
        broken = Outcome(state=TESTS_FAILED, reason="the run of the tests failed")
        described = isolated("machine", machine.describe, {"device": "unknown"}, self._failed)
        tests = self._timed(_TESTS, partial(run_tests, library.path), broken)
        parts = [self._part(part) for part in PARTS]
        sanitizers = {
            check: self._timed(check, partial(run_sanitizer, check, library.path), broken)
            for check in SANITIZERS
        }
        engine = self._timed(
            _ENGINE, partial(try_engine, options.engine), Attempt(state=ENGINE_FAILED)
        )
        return Record(
            command=options.command,
            date=options.date,
            commit=options.commit,
            machine=described,
            library={"origin": library.origin, "sha256": library.sha256},
            tests=tests,
            sanitizers=sanitizers,
            engine=engine,
            parts=parts,
            errors=self._errors,
            seconds=time.monotonic() - started,
        )

    def _part(self, part: Part) -> PartRecord:
        before = machine.clocks()
        planned = part.planned(self._options.quick)
        nothing = PartResult(rows=filled(part.name, planned, [], "the part failed"), seconds=0.0)
        result = self._timed(part.name, partial(self._measured, part), nothing)
        return PartRecord(
            name=part.name,
            title=part.title,
            seconds=result.seconds,
            rows=result.rows,
            reason=result.reason,
            clocks_before=before,
            clocks_after=machine.clocks(),
        )

    def _measured(self, part: Part, seconds: float) -> PartResult:
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            options = self._options
            return run_part(part, options.library.path, options.quick, seconds, rows)

    def _timed(self, name: str, step: Callable[[float], T], otherwise: T) -> T:
        seconds = self._budget.take(name)
        self._say(f"{name}: up to {seconds:.0f} s")
        return isolated(name, partial(step, seconds), otherwise, self._failed)

    def _failed(self, name: str, error: Exception) -> None:
        self._errors.append(f"{name}: {type(error).__name__}: {error}")
