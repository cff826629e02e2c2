"""The README's table of methods, from what `scaling/` holds.

    python -m tools.docs.support_table [--write]

Prints the table, or puts it between its markers in README.md.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click

from ctx_export.cache import policies
from ctx_export.cache.base import Policy, WindowPolicy
from ctx_export.scaling import methods
from ctx_export.scaling.base import Method

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN = "<!-- methods: python -m tools.docs.support_table --write -->\n"
END = "<!-- end of methods -->\n"


def table() -> str:
    """One row per method, tables first, then cache policies: names, what it does, its parameters
    (of tables by Hugging Face's keys), source."""
    lines = ["| `--method` | what it does | parameters | source |", "|---|---|---|---|"]
    lines += [_row(method, _keys(method)) for method in methods().values()]
    for policy in policies().values():
        lines.append(_row(policy, _options(policy)))
    return "\n".join(lines) + "\n"


def _options(policy: Policy) -> list[str]:
    without_sinks = isinstance(policy, WindowPolicy) and policy.default_sinks == 0
    names = [name for name in policy.options if not (without_sinks and name == "sinks")]
    return [f"--{name.replace('_', '-')}" for name in names]


def _keys(method: Method) -> list[str]:
    keys = [field.name for field in fields(method.parameters)]
    return ["factor", *keys] if method.uses_factor else keys


def _row(entry: Method | Policy, keys: list[str]) -> str:
    names = f"`{entry.name}`"
    if entry.aliases:
        names += " (" + ", ".join(f"`{alias}`" for alias in entry.aliases) + ")"
    parameters = ", ".join(f"`{key}`" for key in keys) or "none"
    return f"| {names} | {entry.summary.rstrip('.')} | {parameters} | {entry.source} |"


def updated(text: str) -> str:
    """`text` with the current table between its markers; raises ValueError without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the markers {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + table() + END + after


@click.command()
@click.option("--write", is_flag=True, help="Update README.md instead of printing.")
def main(write: bool) -> None:
    """Print the table of methods or write it into README.md."""
    if write:
        README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        click.echo(table(), nl=False)


if __name__ == "__main__":
    main()
