"""The README's table of families, from what the tests measured.

    python -m tools.docs.family_table [--write]

Prints the table, or puts it between its markers in README.md. docs/support.json holds the errors;
its own command is in CONTRIBUTING.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SUPPORT = ROOT / "docs" / "support.json"
BEGIN = "<!-- families: python -m tools.docs.family_table --write -->\n"
END = "<!-- end of families -->\n"
METHODS = ("none", "yarn", "streaming", "dynamic-ntk")
CHECKPOINT = "checkpoint"

Errors = Mapping[str, Mapping[str, float]]  # by source and method


def table(support: Mapping[str, Any]) -> str:
    """One row per family: under each method the largest error of its checkpoint and of its ONNX
    files in shares of the logit scale, who wrote the files, what sets the family apart."""
    columns = [
        "family",
        *(f"`{method}`" for method in METHODS),
        "ONNX files",
        "what sets it apart",
    ]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for family, errors in support["errors"].items():
        cells = [family, *(_cell(errors, method) for method in METHODS)]
        cells += [_writers(errors), support["apart"][family]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(errors: Errors, method: str) -> str:
    files = [held for source, held in errors.items() if source != CHECKPOINT]
    worst = max((held[method] for held in files if method in held), default=None)
    both = (_text(errors.get(CHECKPOINT, {}).get(method)), _text(worst))
    return " · ".join(both)


def _text(error: float | None) -> str:
    return "–" if error is None else f"{error:.1e}"


def _writers(errors: Errors) -> str:
    return ", ".join(source for source in errors if source != CHECKPOINT) or "–"


def updated(text: str, support: Mapping[str, Any]) -> str:
    """`text` with the table between its markers; raises ValueError without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the markers {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + table(support) + END + after


def measured() -> dict[str, Any]:
    """What docs/support.json holds."""
    held: dict[str, Any] = json.loads(SUPPORT.read_text(encoding="utf-8"))
    return held


@click.command()
@click.option("--write", is_flag=True, help="Update README.md instead of printing.")
def main(write: bool) -> None:
    """Print the table of families or write it into README.md."""
    if write:
        text = updated(README.read_text(encoding="utf-8"), measured())
        README.write_text(text, encoding="utf-8")
    else:
        click.echo(table(measured()), nl=False)


if __name__ == "__main__":
    main()
