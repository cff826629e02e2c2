"""docs/runtimes.md: what runtimes make of a config.json's position settings, from the rules.

python -m tools.docs.runtimes_table [--write]
"""

from __future__ import annotations

from pathlib import Path

import click

from ctx_export.inspection.runtimes import runtimes
from ctx_export.inspection.runtimes.base import Runtime

PAGE = Path(__file__).resolve().parents[2] / "docs" / "runtimes.md"
_HEAD = """# What runtimes make of scaling settings

<!-- python -m tools.docs.runtimes_table --write -->

A checkpoint says in config.json how its positions are scaled. Not every runtime reads all of it,
and most of what is not read goes without a word: short texts pass, long ones are wrong.
`ctx-inspect CHECKPOINT` applies the rules below to a checkpoint, and with `--method` to the
settings that a method would need.

*Dropped*: the setting has no effect. *Misread*: it has another effect than it means. *Refused*:
the runtime stops with an error. A rule holds for the version that is named. transformers and
onnxruntime-genai were run for the settings in `tests/golden/rope_cases.py`, and the rules are held
to the tables and errors that they gave; the sources of the other runtimes were read, not run.
"""


def page() -> str:
    """The whole page: a section with a table for every runtime."""
    return "\n".join((_HEAD, *map(_section, runtimes().values())))


def _section(runtime: Runtime) -> str:
    lines = [
        f"## {runtime.name}, {runtime.version}",
        "",
        f"Rope types that it computes: {', '.join(runtime.honours)}. [{runtime.source}]",
        "",
        "| setting | verdict | what happens | source |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {rule.setting} | {rule.verdict.value} | {rule.reason} | {rule.source} |"
        for rule in runtime.rules
    ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--write", is_flag=True, help="Write docs/runtimes.md instead of printing.")
def main(write: bool) -> None:
    """Print the page or write it."""
    if write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        click.echo(page(), nl=False)


if __name__ == "__main__":
    main()
