"""Rows of a record: what one side of a comparison did in one case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

MEASURED, NOT_MEASURED, FAILED = "measured", "not measured", "failed"
OUT_OF_TIME = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`reason` says why there are no figures. `share` is of the copy bandwidth measured beside."""

    part: str
    case: str
    side: str
    state: str
    reason: str = ""
    note: str = ""
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    runs: int = 0
    rate: float | None = None
    unit: str = ""
    share: float | None = None

    def __post_init__(self) -> None:
        if self.state not in (MEASURED, NOT_MEASURED, FAILED):
            raise ValueError(f"state is {self.state!r}: give {MEASURED}, {NOT_MEASURED}, {FAILED}")
        figures = (self.median_ms, self.p10_ms, self.p90_ms, self.rate)
        if any((figure is None) == (self.state == MEASURED) for figure in figures):
            raise ValueError(f"a row that is {self.state} has the figures {figures}")


def is_ours(side: str) -> bool:
    """Sides are named "ours", or "ours, " and what is special about them."""
    return side.startswith("ours")


def append_row(path: Path, row: Row) -> None:
    """One line of JSON, written through: what was measured outlives a crash."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Rows of a file that a killed process may have left with half a last line."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    return [Row(**json.loads(line)) for line in complete.splitlines()]


def filled(
    part: str, planned: Iterable[tuple[str, str]], rows: list[Row], reason: str
) -> list[Row]:
    """`rows`, and for each (case, side) that has none one that says `reason`."""
    found = {(row.case, row.side) for row in rows}
    missing = [pair for pair in planned if pair not in found]
    return rows + [
        Row(part=part, case=case, side=side, state=NOT_MEASURED, reason=reason)
        for case, side in missing
    ]
