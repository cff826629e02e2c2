"""`ctx-plan`: memory and cost of every method, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ctx_export.cli.common import command, echo_json, json_option
from ctx_export.cli.options import (
    METHODS,
    extent_options,
    limit_options,
    recipe_options,
    type_options,
)


@command("ctx-plan")
@click.argument("model", required=False)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help=f"{METHODS}. May be repeated. [default: all]",
)
@extent_options
@type_options
@limit_options
@recipe_options
@click.option(
    "--memory",
    "memories",
    multiple=True,
    metavar="SIZE",
    help="Memory to fit into, such as 8GB or 7.5GiB; may be repeated.",
)
@click.option(
    "--device",
    "names",
    multiple=True,
    metavar="NAME",
    help="GPU to fit into, such as orin-nano or h100; all: every one that is known. May be "
    "repeated.",
)
@click.option(
    "--reserve",
    default="10%",
    metavar="SHARE",
    help="Share of the memory to keep free. [default: 10%]",
)
@json_option
def main(
    model: str | None,
    methods: tuple[str, ...],
    recipe_file: Path | None,
    settings: tuple[str, ...],
    memories: tuple[str, ...],
    names: tuple[str, ...],
    reserve: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Show what a package of MODEL would need and do at a target, for every method side by side.

    MODEL is a checkpoint directory, a .json file with what its config.json holds, a hub id (only
    config.json and the index of its shards are downloaded), or the bundled demo (the default).
    Nothing else is read, and nothing is written. With --memory or --device it also tells the
    longest context and the most sequences that fit.

    An option of one cache policy, such as --memory-tokens, is for that policy's row unless
    --method or --cache says otherwise. A method that refuses the target shows its reason.
    """
    from ctx_export.planning import plan_report
    from ctx_export.planning.devices import budgets, parse_share
    from ctx_export.planning.methods import Question

    question = Question(
        given={key: value for key, value in given.items() if value is not None},
        methods=methods,
        file=recipe_file,
        settings=settings,
    )
    report = plan_report(model, question, budgets(memories, names), parse_share(reserve))
    if as_json:
        from ctx_export.planning.as_json import report_json

        echo_json(report_json(report))
        return
    from ctx_export.cli.plan_table import table_lines

    for line in table_lines(report):
        click.echo(line)


if __name__ == "__main__":
    main()
