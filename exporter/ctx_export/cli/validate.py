"""`ctx-validate`: a package against PyTorch, position by position."""

from __future__ import annotations

from pathlib import Path

import click

from ctx_export.cli.common import Size, command, echo_json, json_option, terminal_progress
from ctx_export.core.errors import ValidationFailed


@command("ctx-validate")
@click.argument("package", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    required=True,
    metavar="MODEL",
    help="The checkpoint that OUT was made from: a directory, a hub id or demo.",
)
@click.option("--tolerance", type=float, help="Largest error, relative to the logit scale.")
@click.option(
    "--budget",
    type=Size(),
    help="Tokens of the full prefill. [default: 4k, fewer above 0.25B parameters]",
)
@click.option(
    "--engine", "need_engine", is_flag=True, help="Fail where the engine cannot be measured."
)
@json_option
def main(
    package: Path,
    reference: str,
    tolerance: float | None,
    budget: int | None,
    need_engine: bool,
    as_json: bool,
) -> None:
    """Compare the package OUT with transformers' own model and write the report into OUT.

    Logits are compared from position 0 to the last one of the baked context: in prefill, in
    ragged chunks, in decode, and farther out over synthetic caches. An engine in the package is
    measured where there is a GPU. Exits 1 where the package does not agree with PyTorch.
    """
    from ctx_export.frontends.checkpoint import locate
    from ctx_export.validate import run, update_package

    with terminal_progress() as progress:
        report = run(
            package,
            locate(reference),
            tolerance=tolerance,
            budget=budget,
            progress=progress,
            need_engine=need_engine,
        )
    update_package(package, report)
    if as_json:
        echo_json(report.to_json())
    else:
        click.echo("\n".join(report.lines()))
    if not report.passed:
        raise ValidationFailed(f"{package} does not agree with PyTorch: see {package}/report.md")


if __name__ == "__main__":
    main()
