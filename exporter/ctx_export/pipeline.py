"""The export: seven stages from a `Recipe` to a package directory, see DESIGN."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctx_export.core.cache_type import AUTO
from ctx_export.core.errors import UserError, ValidationFailed
from ctx_export.core.io_contract import GENAI
from ctx_export.core.manifest import Manifest
from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.progress import Progress, SilentProgress
from ctx_export.core.recipe import Recipe, build_recipe

if TYPE_CHECKING:
    import onnx_ir as ir

    from ctx_export.frontends.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished export: where it is, its manifest and lines worth printing."""

    output: Path
    manifest: Manifest
    lines: list[str] = field(default_factory=list)


def export(
    model: str | Path = "demo",
    output: str | Path | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Export `model` (checkpoint directory, hub id, .onnx file or "demo") to directory `output`.

    `options` are the keys of a recipe file, sizes as numbers or texts:
    `export("demo", "OUT", method="yarn", target="128k", scaling={"beta_fast": 16})`.
    `force` replaces an `output` that exists; by default it is named from model, method and target.
    Raises UserError for bad input, with nothing written, and ValidationFailed where the package
    disagrees with PyTorch (it is written then, with its report).
    """
    place = None if output is None else Path(output)
    given = {"model": str(model), "output": place, "force": force}
    return run(build_recipe(given, options=options), progress)


def plan(recipe: Recipe) -> Plan:
    """Stages 1 and 4 alone: decide and refuse, from the checkpoint's config and headers and a
    calibration text, or from an .onnx file and what belongs to it."""
    return _read(recipe)[0]


def _read(recipe: Recipe) -> tuple[Plan, Source | None]:
    """The plan, and the source where it had to be read for that."""
    from ctx_export.build.calibration import calibration_tokens
    from ctx_export.frontends.checkpoint import locate, read_checkpoint
    from ctx_export.frontends.onnx_file import is_onnx_file

    source = load_source(recipe) if is_onnx_file(recipe.model) else None
    checkpoint = read_checkpoint(locate(recipe.model)) if source is None else source.checkpoint
    if checkpoint is None and recipe.kv_cache_dtype != AUTO:
        raise UserError(
            f"kv_cache_dtype is {recipe.kv_cache_dtype}: its scales are chosen by PyTorch, which "
            f"cannot run {recipe.model}; give --reference with the checkpoint it was made from"
        )
    if checkpoint is not None and recipe.calibration is not None:
        calibration_tokens(checkpoint, recipe.calibration)
    spec = source.spec if source is not None else checkpoint.spec  # type: ignore[union-attr]
    return make_plan(spec, recipe), source


def run(recipe: Recipe, progress: Progress | None = None) -> Result:
    """Export `recipe` to its output directory.

    Raises UserError for bad input (nothing is written) and ValidationFailed where the package
    disagrees with PyTorch or the ONNX file it was made from (the package is written, with its
    report).
    """
    from ctx_export.build.package import check_output
    from ctx_export.serving.triton import check_repository, check_triton

    progress = progress or SilentProgress()
    output = recipe.output or recipe.default_output()
    check_output(output, force=recipe.force)
    if recipe.triton_repository is not None:
        check_repository(recipe.triton_repository, output.absolute().name, force=recipe.force)
    progress.stage("reading")
    planned, source = _read(recipe)
    if recipe.triton_repository is not None:
        check_triton(planned)
    _choose_target(recipe)  # refuses before any long work
    source = source or load_source(recipe, progress)
    return export_source(source, replace(recipe, output=output), progress, planned)


def load_source(recipe: Recipe, progress: Progress | None = None) -> Source:
    """Stage 2. One source serves any number of `export_source` calls at its precision."""
    from ctx_export.frontends import onnx_file
    from ctx_export.frontends.checkpoint import locate, read_checkpoint
    from ctx_export.frontends.trace import trace

    if not onnx_file.is_onnx_file(recipe.model):
        checkpoint = read_checkpoint(locate(recipe.model))
        (progress or SilentProgress()).stage("tracing")
        return trace(checkpoint, recipe.precision)
    source = onnx_file.read(Path(recipe.model), recipe.reference, recipe.original_context)
    if recipe.precision not in (None, source.precision):
        raise UserError(
            f"precision is {recipe.precision}, and {recipe.model} computes in {source.precision}: "
            f"write the file in {recipe.precision} with the tool that made it, export the "
            "checkpoint, or leave --precision out"
        )
    return source


def export_source(
    source: Source,
    recipe: Recipe,
    progress: Progress | None = None,
    planned: Plan | None = None,
) -> Result:
    """Stages 3 to 7 for a source that is already read at the recipe's precision."""
    from ctx_export.build.model import rewritten, write_model
    from ctx_export.build.package import copy_tokenizer, staged
    from ctx_export.serving.triton import check_triton, write_repository

    progress = progress or SilentProgress()
    planned = planned or make_plan(source.spec, recipe)
    if recipe.triton_repository is not None:
        check_triton(planned)
    if source.precision != planned.precision:
        raise UserError(
            f"the source was traced in {source.precision}, the recipe asks for {planned.precision}"
        )
    output = recipe.output or recipe.default_output()
    with staged(output, force=recipe.force) as stage:
        planned = _calibrated(planned, source, recipe, progress)
        progress.stage("rewriting")
        model = rewritten(source, planned)
        own = _operators_of_onnxruntime(model)
        _check_engine(recipe, own)
        progress.stage("writing weights")
        manifest = write_model(
            model, source, planned, stage, progress, hard_links=not recipe.copy_weights
        )
        copy_tokenizer(source.tokenizers, stage)
        manifest, lines = _add_engine(manifest, recipe, own, stage, progress)
        manifest.save(stage)
        try:
            manifest, failed = _validated(manifest, recipe, source, stage, progress, lines)
        except UserError as error:
            told = str(error).replace(str(stage), str(output))
            raise UserError(f"{told}; --no-validate exports without the comparison") from None
        if planned.io_contract == GENAI:
            manifest, told_of_genai = _with_genai(manifest, planned, source, recipe, stage)
            lines += told_of_genai
    if failed:
        raise ValidationFailed(
            f"{output} does not agree with {failed}: see {output}/report.md", lines
        )
    if recipe.triton_repository is not None:
        lines += write_repository(output, manifest, recipe.triton_repository, recipe)
    return Result(output=output, manifest=manifest, lines=[f"package {output}", *lines])


def _calibrated(planned: Plan, source: Source, recipe: Recipe, progress: Progress) -> Plan:
    """The plan with the scales of a quantised cache."""
    if planned.cache_type is None:
        return planned
    from ctx_export.build.calibration import calibrated

    assert source.checkpoint is not None  # a plan without one has no quantised cache
    return calibrated(planned, source.checkpoint, recipe.calibration, progress)


def _operators_of_onnxruntime(model: ir.Model) -> str:
    """Operators of onnxruntime's that no standard ones stand for, in words; empty without any."""
    from ctx_export.frontends.engine_operators import without_standard_form

    return ", ".join(without_standard_form(model.graph))


def _check_engine(recipe: Recipe, own: str) -> None:
    if own and recipe.engine not in ("auto", "none"):
        raise UserError(
            f"engine is {recipe.engine}, and {recipe.model} has operators that onnxruntime alone "
            f"has ({own}): leave --engine out, or export the checkpoint"
        )


def _choose_target(recipe: Recipe) -> Any:
    from ctx_export.targets import choose

    return choose(recipe.engine)


def _add_engine(
    manifest: Manifest, recipe: Recipe, own: str, stage: Path, progress: Progress
) -> tuple[Manifest, list[str]]:
    """Stage 6: the engine that the recipe's target builds, and what to say about it."""
    if recipe.io == GENAI:
        return manifest, []
    if own and recipe.engine == "auto":
        return manifest, [f"no engine was built: TensorRT has no {own} of onnxruntime's"]
    target = _choose_target(recipe)
    return target.build(manifest, stage, progress)  # type: ignore[no-any-return]


def _with_genai(
    manifest: Manifest, planned: Plan, source: Source, recipe: Recipe, stage: Path
) -> tuple[Manifest, list[str]]:
    """The validated package with onnxruntime-genai's inputs and outputs, compared with what it
    was before unless the recipe says not to."""
    from ctx_export.build.genai_config import convert_to_genai
    from ctx_export.validate.genai_check import before_conversion, checked

    before = before_conversion(stage, manifest) if recipe.validate else None
    config = {} if source.checkpoint is None else source.checkpoint.config
    manifest, lines = convert_to_genai(stage, manifest, planned, config)
    if before is not None:
        manifest, told = checked(stage, manifest, before)
        lines.append(told)
    else:
        lines.append("the graph was not run with them")
    manifest.save(stage)
    return manifest, lines


def _validated(
    manifest: Manifest,
    recipe: Recipe,
    source: Source,
    stage: Path,
    progress: Progress,
    lines: list[str],
) -> tuple[Manifest, str]:
    """Stage 7: compare with PyTorch, and with the ONNX file, unless the recipe says not to. What
    the package disagrees with, in words, is empty where it agrees."""
    if not recipe.validate:
        return manifest, ""
    from ctx_export.validate import FileReport, check_file
    from ctx_export.validate import run as validate

    against = None if source.file is None else check_file(source, stage, progress)
    if source.checkpoint is None:
        assert against is not None
        report: Any = FileReport(file=against)
    else:
        reference = source.checkpoint.directory
        report = validate(stage, reference, tolerance=recipe.tolerance, progress=progress)
        report = replace(report, file=against)
        if recipe.io == GENAI:
            told = "the graph with its own inputs and outputs, before onnxruntime-genai's"
            report = replace(report, facts={**report.facts, "interface": told})
    report.save(stage)
    manifest = replace(manifest, validation=report.summary)
    manifest.save(stage)
    lines.extend(report.lines())
    return manifest, report.disagrees_with
