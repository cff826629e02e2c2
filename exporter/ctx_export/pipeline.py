"""The export: seven stages from a `Recipe` to a package directory, see DESIGN."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctx_export.core.errors import UserError, ValidationFailed
from ctx_export.core.manifest import MODEL_NAME, Manifest
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
    """Export `model` (checkpoint directory, hub id or "demo") to the directory `output`.

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
    calibration text."""
    from ctx_export.build.calibration import calibration_tokens
    from ctx_export.frontends.checkpoint import locate, read_checkpoint

    checkpoint = read_checkpoint(locate(recipe.model))
    if recipe.calibration is not None:
        calibration_tokens(checkpoint, recipe.calibration)
    return make_plan(checkpoint.spec, recipe)


def run(recipe: Recipe, progress: Progress | None = None) -> Result:
    """Export `recipe` to its output directory.

    Raises UserError for bad input (nothing is written) and ValidationFailed where the package
    disagrees with PyTorch (the package is written, with its report).
    """
    from ctx_export.build.package import check_output

    progress = progress or SilentProgress()
    output = recipe.output or recipe.default_output()
    check_output(output, force=recipe.force)
    progress.stage("reading")
    planned = plan(recipe)
    _choose_target(recipe)  # refuses before any long work
    source = load_source(recipe, progress)
    return export_source(source, replace(recipe, output=output), progress, planned)


def load_source(recipe: Recipe, progress: Progress | None = None) -> Source:
    """Stage 2. One source serves any number of `export_source` calls at its precision."""
    from ctx_export.frontends.checkpoint import locate, read_checkpoint
    from ctx_export.frontends.trace import trace

    checkpoint = read_checkpoint(locate(recipe.model))
    (progress or SilentProgress()).stage("tracing")
    return trace(checkpoint, recipe.precision)


def export_source(
    source: Source,
    recipe: Recipe,
    progress: Progress | None = None,
    planned: Plan | None = None,
) -> Result:
    """Stages 3 to 7 for a source that is already traced at the recipe's precision."""
    from ctx_export.build.package import copy_tokenizer, staged

    progress = progress or SilentProgress()
    planned = planned or make_plan(source.spec, recipe)
    if source.precision != planned.precision:
        raise UserError(
            f"the source was traced in {source.precision}, the recipe asks for {planned.precision}"
        )
    output = recipe.output or recipe.default_output()
    with staged(output, force=recipe.force) as stage:
        planned = _calibrated(planned, source, recipe, progress)
        progress.stage("rewriting")
        model = _rewritten(source, planned)
        manifest = _write_model(model, source, planned, stage, progress)
        copy_tokenizer(source.checkpoint.directory, stage)
        manifest, lines = _add_engine(manifest, recipe, planned, stage, progress)
        manifest.save(stage)
        try:
            manifest, failed = _validated(manifest, recipe, source, stage, progress, lines)
        except UserError as error:
            told = str(error).replace(str(stage), str(output))
            raise UserError(f"{told}; --no-validate exports without the comparison") from None
    if failed:
        raise ValidationFailed(
            f"{output} does not agree with PyTorch: see {output}/report.md", lines
        )
    return Result(output=output, manifest=manifest, lines=[f"package {output}", *lines])


def _calibrated(planned: Plan, source: Source, recipe: Recipe, progress: Progress) -> Plan:
    """The plan with the scales of a quantised cache."""
    if planned.cache_type is None:
        return planned
    from ctx_export.build.calibration import calibrated

    return calibrated(planned, source.checkpoint, recipe.calibration, progress)


def _rewritten(source: Source, planned: Plan) -> ir.Model:
    from ctx_export.passes.rewrite import rewrite
    from ctx_export.passes.verify import verify

    model = source.model.clone()
    rewrite(model, planned)
    verify(model, planned)
    return model


def _write_model(
    model: ir.Model, source: Source, planned: Plan, stage: Path, progress: Progress
) -> Manifest:
    """model.onnx with its weights, and the manifest without engine and validation."""
    import onnx_ir as ir

    from ctx_export.build.weights import store_weights

    progress.stage("writing weights")
    stored = store_weights(model.graph, source.weights, stage, progress)
    ir.save(model, stage / MODEL_NAME)
    spec = planned.spec
    return Manifest(
        model={
            "family": spec.family,
            "layers": spec.layers,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "vocab": spec.vocab,
            "original_context": planned.original_context,
            "bos_token_id": spec.bos_token_id,
            "eos_token_ids": list(spec.eos_token_ids),
        },
        method=planned.method,
        scaling=planned.scaling_json(),
        factor=planned.factor,
        max_context=planned.max_context,
        max_batch=planned.max_batch,
        max_chunk=planned.max_chunk,
        layers=planned.caches,
        precision=planned.precision,
        io=planned.io,
        kv_cache=planned.kv_cache_json(),
        weights={"files": list(stored.files), "storage": stored.storage},
        generator=_versions("ctx-export", "torch", "transformers", "onnx-ir", "onnxscript"),
    )


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _choose_target(recipe: Recipe) -> Any:
    from ctx_export.targets import choose

    return choose(recipe.engine)


def _add_engine(
    manifest: Manifest, recipe: Recipe, planned: Plan, stage: Path, progress: Progress
) -> tuple[Manifest, list[str]]:
    """Stage 6: the engine that the recipe's target builds, and what to say about it."""
    target = _choose_target(recipe)
    return target.build(manifest, stage, progress)  # type: ignore[no-any-return]


def _validated(
    manifest: Manifest,
    recipe: Recipe,
    source: Source,
    stage: Path,
    progress: Progress,
    lines: list[str],
) -> tuple[Manifest, bool]:
    """Stage 7: compare with PyTorch unless the recipe says not to."""
    if not recipe.validate:
        return manifest, False
    from ctx_export.validate import run as validate

    report = validate(
        stage, source.checkpoint.directory, tolerance=recipe.tolerance, progress=progress
    )
    report.save(stage)
    manifest = replace(manifest, validation=report.summary)
    manifest.save(stage)
    lines.extend(report.lines())
    return manifest, not report.passed
