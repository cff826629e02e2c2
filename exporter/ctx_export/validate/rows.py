"""What was compared at some positions: rows of errors and their limits, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

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
    def where(self) -> str:
        """The positions in words."""
        return f"{self.position}…{self.last}" if self.is_range else str(self.position)

    @property
    def passed(self) -> bool:
        """Whether the errors are within their limits; infinite and NaN errors are not."""
        mean = self.mean_limit is None or self.mean_error <= self.mean_limit
        return math.isfinite(self.max_error) and self.max_error <= self.limit and mean

    def to_json(self) -> dict[str, Any]:
        """JSON values: an error that is no number becomes null."""
        values = {
            k: json_number(v) if isinstance(v, float) else v for k, v in asdict(self).items()
        }
        return {**values, "passed": self.passed}


def merged(rows: Iterable[Row]) -> list[Row]:
    """Rows of the same positions as one to show: the ways they were compared, the one nearest to
    or farthest beyond its limit, the largest mean error."""
    groups: dict[tuple[bool, int, int, int], list[Row]] = {}
    for row in rows:
        key = (row.is_range, row.position, row.last, -row.compared)
        groups.setdefault(key, []).append(row)
    return [_merged(group) for _, group in sorted(groups.items())]


def terminal_table(rows: Sequence[Row]) -> list[str]:
    """A line per position or range, under the names of the columns."""
    columns = _columns(rows)
    return _aligned([columns, *(_cells(row, columns) for row in merged(rows))])


def markdown_table(rows: Sequence[Row]) -> str:
    """Every row, with the columns that only a file has room for."""
    columns = (*_columns(rows)[:-1], "own table", _PEER, "result")
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cells(_merged([row]), columns)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _merged(group: Sequence[Row]) -> Row:
    """It passes if and only if all of them do."""
    worst = max(group, key=lambda row: _share(row.max_error, row.limit))
    mean = max(group, key=lambda row: (_share(row.mean_error, row.mean_limit), row.mean_error))
    if worst.transformers is None:
        worst = replace(worst, transformers=largest_error(row.transformers for row in group))
    how = ", ".join(row.how for row in group)
    if worst.compared != worst.last - worst.position + 1:
        how += f" of {worst.compared} rows"
    return replace(worst, how=how, mean_error=mean.mean_error, mean_limit=mean.mean_limit)


def _share(error: float, limit: float | None) -> float:
    """An error's share of its limit."""
    if not math.isfinite(error):
        return math.inf
    return 0.0 if limit is None else error / limit


def _columns(rows: Iterable[Row]) -> tuple[str, ...]:
    """Names of the columns that these rows need."""
    if any(row.mean_limit is not None for row in rows):
        return _COLUMNS
    return tuple(name for name in _COLUMNS if name != _MEAN_LIMIT)


def _cells(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    cells = {
        "position": row.where,
        "compared in": row.how,
        "max error": error_text(row.max_error),
        "mean error": error_text(row.mean_error),
        "limit": error_text(row.limit),
        _MEAN_LIMIT: "" if row.mean_limit is None else error_text(row.mean_limit),
        "transformers": error_text(row.transformers),
        "own table": error_text(row.own_table),
        _PEER: "" if row.peer is None else error_text(row.peer),
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


def error_text(value: float | None) -> str:
    """An error for people."""
    if value is None:
        return "n/a"
    return f"{value:.1e}" if math.isfinite(value) else "not finite"


def largest_error(values: Iterable[float | None]) -> float | None:
    """Of those that are known, for JSON."""
    known = [value for value in values if value is not None]
    return json_number(max(known)) if known else None


def json_number(value: float) -> float | None:
    """JSON has neither NaN nor Inf."""
    return value if math.isfinite(value) else None
