"""The tables of docs/evaluation.md, from the JSON files that their commands wrote.

    python -m tools.docs.evaluation_tables [--write]

Prints them, or puts each between its markers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ctx_export.core.sizes import format_size

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "evaluation.md"


def read(name: str) -> dict[str, Any]:
    """A report below docs/."""
    held: dict[str, Any] = json.loads((DOCS / name).read_text(encoding="utf-8"))
    return held


def perplexity_table(report: dict[str, Any]) -> str:
    """A row per package, a column per length; standard errors of one over windows."""
    lengths = sorted({point["length"] for point in report["points"]})
    cells: dict[str, dict[int, str]] = {}
    for point in report["points"]:
        text = f"{point['perplexity']:.2f} ± {point['error']:.2f}"
        cells.setdefault(point["subject"], {})[point["length"]] = text
    rows = [(name, *(found[length] for length in lengths)) for name, found in cells.items()]
    return _table(("perplexity", *map(format_size, lengths)), rows)


def needle_table(report: dict[str, Any]) -> str:
    """Keys found of all depths together."""
    lengths = sorted({cell["length"] for cell in report["cells"]})
    found: dict[str, dict[int, list[float]]] = {}
    for cell in report["cells"]:
        found.setdefault(cell["subject"], {}).setdefault(cell["length"], []).append(cell["found"])
    rows = [
        (name, *(f"{100 * sum(by[n]) / len(by[n]):.0f} %" for n in lengths))
        for name, by in found.items()
    ]
    return _table(("found", *map(format_size, lengths)), rows)


def sinks_table(report: dict[str, Any]) -> str:
    """Perplexity by number of sinks, and the loss above recomputation's."""
    rows = []
    for row in report["rows"]:
        difference = f"{row['difference']:+.4f} ± {row['difference_error']:.4f}"
        shown = difference if row["what"] != "recomputation" else ""
        rows.append(
            (row["what"], f"{row['perplexity']:.3f} ± {row['perplexity_error']:.3f}", shown)
        )
    return _table(("cache of 256 tokens", "perplexity", "loss less recomputation, nats"), rows)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "perplexity": ("evaluation/perplexity.json", perplexity_table),
    "needle": ("evaluation/needle.json", needle_table),
    "sinks": ("benchmarks/sinks-2026-11-24.json", sinks_table),
}


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def updated(text: str) -> str:
    """`text` with every table between its markers; raises ValueError where one has none."""
    for name, (file, make) in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{PAGE.name} lacks the markers {begin.strip()} and {end.strip()}")
        text = before + begin + make(read(file)) + end + after
    return text


@click.command()
@click.option("--write", is_flag=True, help="Update docs/evaluation.md instead of printing.")
def main(write: bool) -> None:
    """Print the tables or write them into docs/evaluation.md."""
    if write:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for file, make in TABLES.values():
        click.echo(make(read(file)))


if __name__ == "__main__":
    main()
