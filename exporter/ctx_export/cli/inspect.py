"""`ctx-inspect`: what a package, a checkpoint or an ONNX file holds, and what would be lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ctx_export.cli.common import command, echo_json, json_option
from ctx_export.cli.inspect_checkpoint import checkpoint_rows
from ctx_export.cli.inspect_onnx import onnx_rows
from ctx_export.cli.inspect_package import package_rows
from ctx_export.cli.inspect_rows import Row
from ctx_export.cli.options import recipe_options, scaling_options
from ctx_export.inspection.runtimes import names

EXIT_LOST = 1
_TABLE_LOST = "the graph does not rotate as config.json means"
_ROWS: dict[str, Callable[[Mapping[str, Any]], Iterator[Row]]] = {
    "package": package_rows,
    "checkpoint": checkpoint_rows,
    "onnx": onnx_rows,
}


@command("ctx-inspect")
@click.argument("path", type=click.Path(path_type=Path))
@scaling_options
@recipe_options
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help=f"A runtime that counts, may be repeated: {', '.join(names())}. [default: all]",
)
@click.option("--strict", is_flag=True, help="Exit with 1 also where a runtime refuses a setting.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Checkpoint that an ONNX file was made from. [default: a config.json beside the file]",
)
@json_option
def main(
    path: Path,
    recipe_file: Path | None,
    settings: tuple[str, ...],
    runtimes: tuple[str, ...],
    strict: bool,
    reference: Path | None,
    as_json: bool,
    **scaling: Any,
) -> int:
    """Show what PATH holds: a package, a checkpoint directory, an .onnx file, or the bundled demo.

    For a checkpoint it also tells what runtimes would make of its position settings; with a method
    and a target, what that method would change, and the same of the settings that say so. Of an
    .onnx file, the tables that its graph computes are compared with what config.json asks for.

    Exit status: 0 nothing is lost; 1 a runtime would drop or misread a setting, or a graph's table
    is not what its settings say; 2 wrong use. What a runtime refuses with an error of its own is
    reported and is no loss, as it cannot go unnoticed; --strict counts it.
    """
    from ctx_export.inspection import inspect_path
    from ctx_export.inspection.question import Question

    question = Question(
        scaling={key: value for key, value in scaling.items() if value is not None},
        file=recipe_file,
        settings=settings,
        runtimes=runtimes,
        reference=reference,
    )
    report = inspect_path(path, question)
    lost = _lost(report, strict)
    if report["kind"] != "package":
        report["lost"] = lost
    if as_json:
        echo_json(report)
        return EXIT_LOST if lost else 0
    for name, value in _ROWS[report["kind"]](report):
        click.echo(f"{name:<14} {value}")
    if report["kind"] != "package":
        click.echo(f"{'lost':<14} {'; '.join(lost) or _nothing(report)}")
    return EXIT_LOST if lost else 0


def _lost(report: Mapping[str, Any], strict: bool) -> list[str]:
    """What would be lost, in words; a refusal counts where `strict`."""
    counted = {"dropped", "misread"} | ({"refused"} if strict else set())
    lost = [
        f"{found['runtime']}: {found['setting']} {found['verdict']}"
        for found in report.get("runtimes", ())
        if found["verdict"] in counted
    ]
    tables = report.get("tables_agree")
    return lost + ([_TABLE_LOST] if tables and not tables["agree"] else [])


def _nothing(report: Mapping[str, Any]) -> str:
    """The last row where nothing was found to be lost."""
    if report.get("runtimes") or report.get("tables_agree"):
        return "nothing"
    return "nothing was compared: there are no settings of a config.json to compare with"


if __name__ == "__main__":
    main()
