"""The dated record of a run on a GPU, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.gpu.engine import Attempt
from tools.gpu.machine import slug
from tools.gpu.rows import FAILED, MEASURED, Row
from tools.gpu.suite import NOT_RUN, PASSED, Outcome

_HEADER = ("case", "side", "median ms", "p10", "p90", "runs", "rate", "of copy", "note")
_WINDOWED, _FULL, _STREAMING = "windowed", "prefill", "streaming"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """`reason`: how the part's process failed; empty where it did not. Clocks as nvidia-smi says
    them before and after."""

    name: str
    title: str
    seconds: float
    rows: list[Row]
    reason: str = ""
    clocks_before: dict[str, str] = field(default_factory=dict)
    clocks_after: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run of the command on one device. `errors` are of the run itself."""

    command: str
    date: str  # YYYY-MM-DD
    commit: str
    machine: dict[str, Any]
    library: dict[str, str]
    tests: Outcome
    sanitizers: dict[str, Outcome]
    engine: Attempt
    parts: list[PartRecord]
    errors: list[str]
    seconds: float

    def failures(self) -> list[str]:
        """Everything that makes the exit status 1, a line each. An engine that does not run is a
        finding, and a tool that is not installed is none."""
        found = list(self.errors)
        for name, outcome in {"tests": self.tests, **self.sanitizers}.items():
            if outcome.state not in (PASSED, NOT_RUN):
                found.append(f"{name}: {outcome.failed} failed {outcome.reason}".strip())
        for part in self.parts:
            if part.reason:
                found.append(f"{part.name}: {part.reason}")
            found += [
                f"{part.name}, {row.case}, {row.side}: {row.reason}"
                for row in part.rows
                if row.state == FAILED
            ]
        return found


def write(record: Record, directory: Path) -> tuple[Path, Path]:
    """gpu-DATE-DEVICE.json and .md in `directory`; one of the same day and device is replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"gpu-{record.date}-{slug(str(record.machine['device']))}"
    data, text = directory / f"{stem}.json", directory / f"{stem}.md"
    data.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    text.write_text(markdown(record), encoding="utf-8")
    return data, text


def markdown(record: Record) -> str:
    lines = [f"# {record.machine['device']}, {record.date}", ""]
    lines += ["```", f"$ {record.command}", "```", ""]
    lines += [*_failed(record.failures()), *_machine(record), *_tests(record)]
    for part in record.parts:
        lines += _part(part, record.parts)
    return "\n".join(lines) + "\n"


def _failed(failures: Sequence[str]) -> list[str]:
    if not failures:
        return []
    return ["**Failed:**", "", *(f"- {_one_line(text)}" for text in failures), ""]


def _machine(record: Record) -> list[str]:
    facts = {
        "commit": record.commit,
        "library": record.library["origin"],
        **record.machine,
        "seconds": f"{record.seconds:.0f}",
    }
    rows = [(name.replace("_", " "), str(value)) for name, value in facts.items()]
    return [*_table(("machine", ""), rows), ""]


def _tests(record: Record) -> list[str]:
    named = {"tests marked gpu": record.tests, **record.sanitizers}
    rows = [(name, _outcome(outcome)) for name, outcome in named.items()]
    rows.append(("TensorRT-RTX engine", _attempt(record.engine)))
    return [*_table(("checked", "result"), rows), ""]


def _outcome(outcome: Outcome) -> str:
    if outcome.state == NOT_RUN:
        return f"not run: {outcome.reason}"
    counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
    return "; ".join(filter(None, [counts, *outcome.failures[:20], outcome.reason]))


def _attempt(attempt: Attempt) -> str:
    stages = [f"{stage} ({text})" for stage, text in attempt.stages]
    return "; ".join(filter(None, [f"{attempt.state}: {attempt.reason}".strip(": "), *stages]))


def _part(part: PartRecord, parts: Iterable[PartRecord]) -> list[str]:
    rates = _full_rates(parts) if part.name == _WINDOWED else {}
    rows = [_cells(row, rates.get(_size(row.case))) for row in part.rows]
    lines = [f"## {part.title}", "", *_table(_HEADER, rows), ""]
    if part.name == _WINDOWED:
        lines += ["Rates are on visible pairs; shares are of ours, full causal, at that size.", ""]
    if part.name == _STREAMING:
        lines += _positions(part.rows)
    if part.clocks_after:
        before, after = (
            ", ".join(f"{k} {v}" for k, v in clocks.items())
            for clocks in (part.clocks_before, part.clocks_after)
        )
        lines += [f"Before: {before or 'unknown'}. After: {after}.", ""]
    return lines


def _positions(rows: Sequence[Row]) -> list[str]:
    """The longest median over the shortest, of all positions with one batch size."""
    medians: dict[str, list[float]] = {}
    for row in rows:
        if row.median_ms is not None:
            medians.setdefault(row.case.rpartition("batch ")[2], []).append(row.median_ms)
    lines = [
        f"Batch {batch}: the slowest position takes {max(found) / min(found):.3f} times the "
        f"fastest's time, of {len(found)}."
        for batch, found in medians.items()
        if len(found) > 1
    ]
    return [*lines, ""] if lines else []


def _cells(row: Row, full_rate: float | None) -> tuple[str, ...]:
    if row.state != MEASURED:
        text = f"{row.state} ({_one_line(row.reason)})"
        return (row.case, row.side, text, *[""] * (len(_HEADER) - 3))
    times = [
        f"{value:.4f}" for value in (row.median_ms, row.p10_ms, row.p90_ms) if value is not None
    ]
    share = "" if row.share is None else f"{row.share:.1%}"
    note = row.note
    if full_rate and row.rate:
        note = ", ".join(filter(None, [note, f"{row.rate / full_rate:.1%} of full causal"]))
    return (row.case, row.side, *times, str(row.runs), f"{row.rate:.1f} {row.unit}", share, note)


def _full_rates(parts: Iterable[PartRecord]) -> dict[str, float]:
    """Our full causal rate by "d128 32k"."""
    return {
        _size(row.case): row.rate
        for part in parts
        if part.name == _FULL
        for row in part.rows
        if row.side == "ours" and row.rate is not None
    }


def _size(case: str) -> str:
    return " ".join(case.split()[:2])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(_one_line(cell) for cell in line) + " |" for line in lines]


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
