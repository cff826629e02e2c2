"""The report of a validation: rows per position, saved as report.json and report.md."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

REPORT_JSON = "report.json"
REPORT_MD = "report.md"
# What inv_freq and the multiplier may differ from transformers' own, relative.
FREQUENCY_TOLERANCE = 2e-6
MULTIPLIER_TOLERANCE = 1e-6
# Mean share of the logit scale by which a quantised cache may change the logits: beyond it a model
# needs another cache, not another tolerance.
QUANTISATION_LIMIT = 0.05

_MEAN_LIMIT, _PEER = "mean limit", "PyTorch, same precision"
_COLUMNS = (
    "position",
    "compared in",
    "max error",
    "mean error",
    "limit",
    _MEAN_LIMIT,
    "transformers",
    "result",
)
_QUANTISED_LIMITS = """\
Over a quantised cache a key or value near the middle between two of its numbers may be rounded one
way in the package and the other in PyTorch, and each such rounding changes the logits by a part of
what quantising changes. `limit` allows for a share of that change, `mean limit` holds the rows
together to what few such roundings explain.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Errors at `position`, or of `compared` rows from `position` to `last`, as shares of the
    logit scale.

    `transformers` is the error of the unmodified model, `own_table` that of float64 angles over
    transformers' own float32 table, both None where transformers computes nothing of the kind;
    `peer` is that of PyTorch in the package's precision. A `mean_limit` of None allows any mean.
    """

    position: int
    last: int
    compared: int
    how: str  # prefill, chunks, decode, probe
    max_error: float
    mean_error: float
    limit: float
    transformers: float | None
    own_table: float | None
    peer: float | None = None
    mean_limit: float | None = None

    @property
    def is_range(self) -> bool:
        return self.last != self.position

    @property
    def passed(self) -> bool:
        """Whether the errors are within their limits; infinite and NaN errors are not."""
        mean = self.mean_limit is None or self.mean_error <= self.mean_limit
        return math.isfinite(self.max_error) and self.max_error <= self.limit and mean

    def to_json(self) -> dict[str, Any]:
        """JSON values: an error that is no number becomes null."""
        values = {k: _number(v) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return {**values, "passed": self.passed}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationSection:
    """What a quantised cache costs: the package against PyTorch over caches that keep every
    number as it is, over the tokens of prefill, chunks and decode, in shares of the logit scale.
    """

    dtype: str
    max_error: float
    mean_error: float
    limit: float = QUANTISATION_LIMIT  # of the mean error

    @property
    def passed(self) -> bool:
        return self.mean_error <= self.limit

    def to_json(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "max_error": _number(self.max_error),
            "mean_error": _number(self.mean_error),
            "mean_limit": self.limit,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSection:
    """A TensorRT engine's part of the report.

    `plugin_layers` of the engine and `sites` of the graph (its `ctx` nodes) must be equal. `rows`
    are empty where the engine cannot run; `state` then says why.
    """

    runtime: str
    plugin_layers: int
    sites: int
    state: str
    rule: str = ""
    rows: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return (
            self.plugin_layers == self.sites
            and not self.problems
            and all(row.passed for row in self.rows)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "plugin_layers": self.plugin_layers,
            "sites": self.sites,
            "state": self.state,
            "rule": self.rule,
            "passed": self.passed,
            "problems": list(self.problems),
            "rows": [row.to_json() for row in self.rows],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """Everything a validation found. `facts` are words for people: method, precision, runtime."""

    facts: Mapping[str, str]
    rule: str
    max_context: int | None  # None: there is no last position
    rows: tuple[Row, ...]
    frequency_error: float  # of inv_freq against transformers' own, relative
    multiplier_error: float
    problems: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # what was not compared, and why
    quantisation: QuantisationSection | None = None
    engine: EngineSection | None = None
    cache_bytes: int | None = None  # of one sequence's caches at full capacity
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every row, the tables and the engine are within their limits."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """What is beyond its limit, in words; nothing compared is a failure too."""
        found = [] if self.rows else ["nothing was compared"]
        wrong = [row for row in self.rows if not row.passed]
        if wrong:
            first = min(wrong, key=lambda row: (row.is_range, row.position))
            found.append(f"{len(wrong)} of {len(self.rows)} rows, the first at {_where(first)}")
        if self.problems:
            found.append(f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}")
        # "not <=": an error that is no number fails.
        if not self.frequency_error <= FREQUENCY_TOLERANCE:
            found.append("inv_freq")
        if not self.multiplier_error <= MULTIPLIER_TOLERANCE:
            found.append("the multiplier")
        if self.quantisation is not None and not self.quantisation.passed:
            found.append(f"the loss by a cache of {self.quantisation.dtype}")
        if self.engine is not None and not self.engine.passed:
            found.append("the engine")
        return found

    @property
    def reach(self) -> int:
        """The last position that was compared, -1 where none was."""
        return max((row.last for row in self.rows), default=-1)

    @property
    def summary(self) -> dict[str, Any]:
        """The manifest's `validation` entry; figures only, rows are in report.json."""
        result: dict[str, Any] = {
            "passed": self.passed,
            "max_error": _number(max((r.max_error for r in self.rows), default=math.inf)),
            "rule": self.rule,
            "last_position": self.reach,
            "transformers_error": _largest(row.transformers for row in self.rows),
            "inv_freq_error": _number(self.frequency_error),
            "runtime": self.facts.get("runtime", ""),
            "seconds": round(self.seconds, 1),
        }
        if self.skipped:
            result["not_compared"] = list(self.skipped)
        if self.quantisation is not None:
            result["quantisation"] = self.quantisation.to_json()
        if self.engine is not None:
            result["engine"] = {
                k: v for k, v in self.engine.to_json().items() if k not in ("rows", "problems")
            }
        return result

    def to_json(self) -> dict[str, Any]:
        """report.json's contents."""
        return {
            "passed": self.passed,
            "failures": self.failures,
            "last_position": self.reach,
            "facts": dict(self.facts),
            "rule": self.rule,
            "errors_are": "shares of the logit scale, max |reference logits| of the rows "
            "compared together",
            "inv_freq_error": _number(self.frequency_error),
            "inv_freq_limit": FREQUENCY_TOLERANCE,
            "multiplier_error": _number(self.multiplier_error),
            "multiplier_limit": MULTIPLIER_TOLERANCE,
            "rows": [row.to_json() for row in self.rows],
            "problems": list(self.problems),
            "not_compared": list(self.skipped),
            "quantisation": None if self.quantisation is None else self.quantisation.to_json(),
            "engine": None if self.engine is None else self.engine.to_json(),
            "cache_bytes_per_sequence": self.cache_bytes,
            "seconds": round(self.seconds, 1),
            "versions": dict(self.versions),
        }

    def save(self, directory: Path) -> None:
        """Write report.json and report.md into `directory`."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        (directory / REPORT_JSON).write_text(text + "\n", encoding="utf-8")
        (directory / REPORT_MD).write_text(self.markdown(), encoding="utf-8")

    def lines(self) -> list[str]:
        """For a terminal: a row per position, then the verdict."""
        columns = _columns(self.rows)
        shown = _aligned([columns, *(_cells(row, columns) for row in merged(self.rows))])
        return [*shown, *self._remarks(), self.verdict()]

    def verdict(self) -> str:
        """One line: passed or not, the largest error and the rule."""
        worst = max((row.max_error for row in self.rows), default=math.inf)
        reference = "PyTorch"
        if self.quantisation is not None:
            reference += f" over a cache of {self.quantisation.dtype}"
        if not self.passed:
            state = f"DOES NOT AGREE with {reference} ({'; '.join(self.failures)})"
        else:
            state = f"agrees with {reference} up to position {self.reach}"
        if self.max_context is not None and self.rows and self.reach < self.max_context - 1:
            state += f", NOT COMPARED beyond {self.reach} up to {self.max_context - 1}"
        return (
            f"{state}: largest error {_text(worst)} of the logit scale ({self.rule}; "
            f"{self.seconds:.0f} s)"
        )

    def markdown(self) -> str:
        """report.md: the verdict, the facts, every row."""
        parts = [f"# Validation\n\n{self.verdict()}\n"]
        parts.append("".join(f"- {name}: {value}\n" for name, value in self.facts.items()))
        parts.append("".join(f"- {remark}\n" for remark in self._remarks()))
        parts.append(
            "Errors are shares of the logit scale, the largest magnitude among the reference "
            "logits of the rows\ncompared together. `transformers` is the error of the unmodified "
            "model (float32 angles over its own\ntable), `own table` that of float64 angles over "
            "transformers' own float32 table; n/a where it\ncomputes nothing of the kind.\n"
        )
        if self.quantisation is not None:
            parts.append(_QUANTISED_LIMITS)
        parts.append(_markdown_table(self.rows))
        if self.engine is not None and self.engine.rows:
            parts.append(f"## Engine ({self.engine.runtime})\n\n{self.engine.rule}\n")
            parts.append(_markdown_table(self.engine.rows))
        return "\n".join(parts)

    def _remarks(self) -> list[str]:
        found = [
            f"inv_freq differs from transformers' own by {_text(self.frequency_error)} relative "
            f"(limit {FREQUENCY_TOLERANCE:g}), the multiplier by {_text(self.multiplier_error)} "
            f"(limit {MULTIPLIER_TOLERANCE:g})"
        ]
        if self.quantisation is not None:
            found.append(_quantisation_remark(self.quantisation))
        found += [f"PROBLEM: {problem}" for problem in self.problems]
        found += [f"not compared: {what}" for what in self.skipped]
        if self.engine is not None:
            found += _engine_remarks(self.engine)
        return found


def merged(rows: Iterable[Row]) -> list[Row]:
    """Rows of the same positions as one to show: the ways they were compared, the one nearest to
    or farthest beyond its limit, the largest mean error."""
    groups: dict[tuple[bool, int, int, int], list[Row]] = {}
    for row in rows:
        key = (row.is_range, row.position, row.last, -row.compared)
        groups.setdefault(key, []).append(row)
    return [_merged(group) for _, group in sorted(groups.items())]


def _merged(group: Sequence[Row]) -> Row:
    """It passes if and only if all of them do."""
    worst = max(group, key=lambda row: _share(row.max_error, row.limit))
    mean = max(group, key=lambda row: (_share(row.mean_error, row.mean_limit), row.mean_error))
    if worst.transformers is None:
        worst = replace(worst, transformers=_largest(row.transformers for row in group))
    how = ", ".join(row.how for row in group)
    if worst.compared != worst.last - worst.position + 1:
        how += f" of {worst.compared} rows"
    return replace(worst, how=how, mean_error=mean.mean_error, mean_limit=mean.mean_limit)


def _share(error: float, limit: float | None) -> float:
    """An error's share of its limit."""
    if not math.isfinite(error):
        return math.inf
    return 0.0 if limit is None else error / limit


def _where(row: Row) -> str:
    return f"{row.position}…{row.last}" if row.is_range else str(row.position)


def _columns(rows: Iterable[Row]) -> tuple[str, ...]:
    """Names of the columns that these rows need."""
    if any(row.mean_limit is not None for row in rows):
        return _COLUMNS
    return tuple(name for name in _COLUMNS if name != _MEAN_LIMIT)


def _cells(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    cells = {
        "position": _where(row),
        "compared in": row.how,
        "max error": _text(row.max_error),
        "mean error": _text(row.mean_error),
        "limit": _text(row.limit),
        _MEAN_LIMIT: "" if row.mean_limit is None else _text(row.mean_limit),
        "transformers": _text(row.transformers),
        "own table": _text(row.own_table),
        _PEER: "" if row.peer is None else _text(row.peer),
        "result": "ok" if row.passed else "FAILED",
    }
    return tuple(cells[name] for name in columns)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell; the second is text and aligned to the left."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def _markdown_table(rows: Sequence[Row]) -> str:
    columns = (*_columns(rows)[:-1], "own table", _PEER, "result")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cells(_merged([row]), columns)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _quantisation_remark(loss: QuantisationSection) -> str:
    return (
        f"the {loss.dtype} cache changes the logits by {_text(loss.mean_error)} in the mean "
        f"(limit {loss.limit:g}), {_text(loss.max_error)} at most, against PyTorch over a cache "
        "of full precision"
    )


def _engine_remarks(engine: EngineSection) -> list[str]:
    equal = "=" if engine.plugin_layers == engine.sites else "BUT"
    return [
        f"engine {engine.runtime}: {engine.plugin_layers} plugin layers {equal} {engine.sites} "
        f"sites; {engine.state}",
        *(f"PROBLEM of the engine: {problem}" for problem in engine.problems),
    ]


def _text(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:.1e}" if math.isfinite(value) else "not finite"


def _largest(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _number(max(known)) if known else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
