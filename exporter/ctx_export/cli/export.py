"""`ctx-export`: a checkpoint, a method and a target to a package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import click

from ctx_export.cli.common import command, echo_json, json_option, terminal_progress
from ctx_export.cli.options import package_options, recipe_options, scaling_options
from ctx_export.core.errors import ValidationFailed
from ctx_export.core.recipe import Recipe, build_recipe


@command("ctx-export")
@click.argument("model", required=False)
@click.option(
    "--reference",
    metavar="CHECKPOINT",
    help="Of an .onnx file: the checkpoint it was made from, a directory or hub id, for its "
    "config.json and the comparison with PyTorch.",
)
@scaling_options
@package_options
@recipe_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Package directory. [default: named from model, method and target]",
)
@click.option(
    "--triton-repository",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Add the package to a Triton model repository too, under its name.",
)
@click.option("--force", is_flag=True, help="Replace an output directory that exists.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@json_option
def main(
    recipe_file: Path | None,
    settings: tuple[str, ...],
    no_validate: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make MODEL run at a longer context and write it as a package.

    MODEL is a checkpoint directory, a hub id, an .onnx file, or the bundled demo (the default).
    The package holds an ONNX graph for any runtime, a TensorRT engine where one can be built, and
    a report that compares both with PyTorch. An .onnx file may be of any exporter: what it does
    not state comes from --reference, else from a config.json or genai_config.json beside it;
    without scaling, the rewritten graph is compared with the file itself.
    """
    given = {**options, "validate": False if no_validate else None, "force": force or None}
    recipe = build_recipe(given, file=recipe_file, settings=settings)
    if recipe.output is None:
        recipe = replace(recipe, output=recipe.default_output())
    if dry_run:
        _show_plan(recipe, as_json)
    else:
        _export(recipe, as_json)


def _show_plan(recipe: Recipe, as_json: bool) -> None:
    from ctx_export.pipeline import plan

    planned = plan(recipe)
    if as_json:
        echo_json(planned.to_json())
    else:
        click.echo(planned.describe())


def _export(recipe: Recipe, as_json: bool) -> None:
    from ctx_export.pipeline import run

    try:
        with terminal_progress() as progress:
            result = run(recipe, progress)
    except ValidationFailed as failed:
        if not as_json:
            click.echo("\n".join(failed.lines))
        raise
    if as_json:
        echo_json({"output": str(result.output), "manifest": _plain(result.manifest)})
        return
    for line in result.lines:
        click.echo(line)


def _plain(manifest: Any) -> Any:
    """A manifest as JSON values, whether it is the dataclass or already a mapping."""
    if is_dataclass(manifest) and not isinstance(manifest, type):
        return asdict(manifest)
    return dict(manifest) if isinstance(manifest, Mapping) else manifest


if __name__ == "__main__":
    main()
