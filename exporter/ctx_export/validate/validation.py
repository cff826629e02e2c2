"""Stage 7: a package and a PyTorch reference in, a report out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError
from ctx_export.core.io_contract import NATIVE
from ctx_export.core.manifest import BOUNDED, MODEL_NAME, Manifest
from ctx_export.core.model_spec import UNKNOWN_FAMILY
from ctx_export.core.plan import describe_caches
from ctx_export.core.progress import Progress, SilentProgress
from ctx_export.core.rules import Landmark
from ctx_export.inspection.package import cache_bytes as package_cache_bytes
from ctx_export.runtime.slots import held_tokens
from ctx_export.validate.compare import Rule
from ctx_export.validate.file_check import FileSection
from ctx_export.validate.memory import gibibytes, parameters, reference_memory
from ctx_export.validate.package_side import Compared, compare_session
from ctx_export.validate.pairwise_side import PairwiseSettings, needs_pairs, pairwise_logits
from ctx_export.validate.positions import ValidationPlan, default_budget, make_plan
from ctx_export.validate.quantised import cache_numbers
from ctx_export.validate.reference_side import References, ReferenceSettings, reference_logits
from ctx_export.validate.report import EngineSection, QuantisationSection, ValidationReport
from ctx_export.validate.rope_parameters import Scaling
from ctx_export.validate.rope_tables import own_tables, package_table
from ctx_export.validate.synthetic import cache_bytes

_CPU = "CPUExecutionProvider"
# Copies of a probe's cache that exist at once: the synthetic one, PyTorch's and its extension.
_CACHE_COPIES = 3
# With unrotated keys also the rotated ones, and float64 copies of a layer.
_PAIRWISE_COPIES = 6
_WORDS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    """The engine of a package and why it cannot run here, None where it can."""

    runtime: str
    plugin_layers: int
    sites: int
    missing: str | None


def run(
    package: Path,
    reference: Path,
    *,
    tolerance: float | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
    need_engine: bool = False,
) -> ValidationReport:
    """Compare `package` with transformers' model of the checkpoint directory `reference`.

    `tolerance`: largest error as a share of the logit scale (default 1e-3 in float32, else twice
    PyTorch's error in the same precision + the unit roundoff). `budget`: tokens of the full
    prefill (default 4096, fewer for models above 0.25B parameters). The package's engine is
    compared too where there is a GPU; with `need_engine` it must.
    Nothing is written: `update_package` does that. What memory does not suffice for is left out,
    and the report says so. Raises UserError, before any long work, for a reference that is not the
    package's checkpoint or an engine that is needed and cannot run.
    """
    started = time.monotonic()
    progress = progress or SilentProgress()
    manifest = Manifest.load(package)
    if manifest.io_contract != NATIVE:
        raise UserError(
            f"{package} has the inputs and outputs of io {manifest.io_contract}, and the native "
            "ones are compared: ctx-export does so before it changes them, see its report.md; "
            "export again without --io genai to compare now"
        )
    checkpoint = _checked(manifest, reference)
    found = _engine(manifest, package)
    if need_engine:
        _check_engine(package, found)
    judged = tolerance is not None or not _has_other_weights(manifest)
    rules = _rules(manifest, tolerance, found) if judged else _no_limits(manifest, found)
    memory = reference_memory(checkpoint)
    peers = _peers(rules, found)
    settings = _settings(manifest, checkpoint, peers, by_layer=memory.by_layer)
    if budget is None:
        most = default_budget(parameters(checkpoint))
        budget = _clear_prefill(manifest, peers, most)
    plan, skipped = _affordable(manifest, budget, memory.room)
    references = _references(settings, plan, progress)
    progress.stage("comparing onnxruntime")
    compared = _compare_ort(package, plan, references, rules["ort"], progress)
    section = None
    if found is not None:
        progress.stage("comparing the engine")
        section = _compare_engine(package, plan, references, rules["engine"], found, progress)
    return ValidationReport(
        facts=_facts(manifest, settings, plan),
        rule=rules["ort"].describe(),
        max_context=manifest.max_context,
        rows=compared.rows,
        problems=compared.problems,
        **_table_errors(manifest, references),
        skipped=(*skipped, *_undecided(references, rules, found)),
        quantisation=_quantisation(manifest, compared),
        engine=section,
        file=_file_check(manifest),
        judged=judged,
        cache_bytes=package_cache_bytes(manifest),
        seconds=time.monotonic() - started,
        versions=_versions(),
    )


def update_package(package: Path, report: ValidationReport) -> Manifest:
    """Write the report into `package` and its summary into the manifest."""
    report.save(package)
    manifest = replace(Manifest.load(package), validation=report.summary)
    manifest.save(package)
    return manifest


def relative_difference(table: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Largest |a − b| / |b| of two frequency tables [F]; equal zeros do not differ."""
    if table.shape != reference.shape:
        raise UserError(
            f"the package has {len(table)} frequencies, the reference {len(reference)}: give the "
            "checkpoint that the package was made from"
        )
    difference = np.abs(table.astype(np.float64) - reference.astype(np.float64))
    size = np.abs(reference.astype(np.float64))
    safe = np.where(size > 0, size, 1.0)
    return float(np.where(difference != 0, np.where(size > 0, difference / safe, np.inf), 0).max())


def _checked(manifest: Manifest, reference: Path) -> Any:
    """The reference as a `Checkpoint`; raises UserError where its shape is not the package's."""
    from ctx_export.frontends.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(reference)
    spec, model = checkpoint.spec, manifest.model
    stated = () if model["family"] == UNKNOWN_FAMILY else ("family",)
    for name in (*stated, "layers", "heads", "kv_heads", "head_dim", "vocab"):
        if getattr(spec, name) != model[name]:
            raise UserError(
                f"reference {reference} has {name} {getattr(spec, name)}, the package "
                f"{model[name]}: give the checkpoint that the package was made from"
            )
    return checkpoint


def _file_check(manifest: Manifest) -> FileSection | None:
    """What the export found when it had the ONNX file at hand."""
    found = (manifest.validation or {}).get("file_check")
    return None if found is None else FileSection.from_json(found)


def _has_other_weights(manifest: Manifest) -> bool:
    """Whether the package's weights are an ONNX file's quantised ones, and PyTorch's are not."""
    return manifest.source is not None and bool(manifest.source.get("quantised_weights"))


def _clear_prefill(manifest: Manifest, peers: tuple[str, ...], most: int) -> int:
    """Tokens of the full prefill, at most `most`: where choices of blocks turn, nothing after the
    first is compared, and farther positions are probed instead."""
    rules = [cache.parameters for cache in manifest.layers]
    turns = any(isinstance(rule, Landmark) and (peers or rule.token is not None) for rule in rules)
    return min(most, 2 * int(manifest.model["original_context"])) if turns else most


def _quantisation(manifest: Manifest, compared: Compared) -> QuantisationSection | None:
    """What the package's quantised cache costs."""
    if compared.loss is None:
        return None
    largest, mean = compared.loss
    return QuantisationSection(dtype=manifest.cache_dtype, max_error=largest, mean_error=mean)


def _undecided(
    references: References, rules: dict[str, Rule], engine: _Engine | None
) -> tuple[str, ...]:
    """What was left out because rounding decides which blocks score best."""
    compared = [rules["ort"].precision]
    if engine is not None and engine.missing is None:
        compared.append(rules["engine"].precision)
    counts = {name: references.computed_in(name).undecided for name in dict.fromkeys(compared)}
    return tuple(
        f"{count} rows whose best blocks score alike in {_WORDS[name]}"
        for name, count in counts.items()
        if count
    )


def _references(
    settings: ReferenceSettings | PairwiseSettings, plan: ValidationPlan, progress: Progress
) -> References:
    if isinstance(settings, PairwiseSettings):
        return pairwise_logits(settings, plan, progress)
    return reference_logits(settings, plan, progress)


def _table_errors(manifest: Manifest, references: References) -> dict[str, float]:
    """The largest differences of the package's tables from transformers' own."""
    table = package_table(manifest)
    held = (_inv_freq(manifest), float(manifest.scaling["multiplier"]))
    pairs = [(held, (references.inv_freq, references.multiplier))]
    pairs += [(table(length), theirs) for length, theirs in references.tables.items()]
    for own, of_kind in zip(own_tables(manifest), references.layer_tables, strict=False):
        if own is not None and of_kind is not None:
            pairs.append((own, of_kind))
    frequency = [relative_difference(ours[0], theirs[0]) for ours, theirs in pairs]
    multiplier = [abs(ours[1] / theirs[1] - 1) for ours, theirs in pairs]
    # np.max, unlike max, keeps an error that is no number.
    return {
        "frequency_error": float(np.max(frequency)),
        "multiplier_error": float(np.max(multiplier)),
    }


def _rules(manifest: Manifest, tolerance: float | None, engine: _Engine | None) -> dict[str, Rule]:
    """The rule of each runtime. On a CPU a bfloat16 package runs as its float32 twin."""
    computed = "fp32" if manifest.precision == "bf16" else manifest.precision
    quantised = manifest.quantised
    rules = {"ort": Rule.of(computed, tolerance, quantised=quantised)}
    if engine is not None:
        rules["engine"] = Rule.of(manifest.precision, tolerance, quantised=quantised)
    return rules


def _no_limits(manifest: Manifest, engine: _Engine | None) -> dict[str, Rule]:
    rule = Rule(precision=manifest.precision, tolerance=math.inf)
    return {"ort": rule} if engine is None else {"ort": rule, "engine": rule}


def _peers(rules: dict[str, Rule], engine: _Engine | None) -> tuple[str, ...]:
    """The precisions that PyTorch must be run in too, for the runtimes that can run here."""
    used = [rules["ort"]]
    if engine is not None and engine.missing is None:
        used.append(rules["engine"])
    return tuple(sorted({rule.precision for rule in used if rule.needs_peer}))


def _settings(
    manifest: Manifest, checkpoint: Any, peers: tuple[str, ...], *, by_layer: bool
) -> ReferenceSettings | PairwiseSettings:
    from ctx_export.validate.torch_reference import has_kinds, hugging_face_rope, load_config

    config = load_config(checkpoint.directory)
    if needs_pairs(manifest) or has_kinds(config):
        settings = PairwiseSettings.of(manifest, checkpoint, peers=peers, by_layer=by_layer)
        settings.check()
        return settings
    rope = hugging_face_rope(Scaling.of(manifest), config, _inv_freq(manifest))
    return ReferenceSettings(
        checkpoint=checkpoint.directory,
        rope=rope,
        weights=manifest.precision,
        peers=peers,
        by_layer=by_layer,
        numbers=cache_numbers(manifest),
    )


def _affordable(
    manifest: Manifest, budget: int, room: float
) -> tuple[ValidationPlan, tuple[str, ...]]:
    """The plan without the probes whose caches need more than `room`, and what was left out."""
    model = manifest.model
    rings = [cache.capacity for cache in manifest.layers if cache.policy == BOUNDED]
    original = int(model["original_context"])
    plan = make_plan(original, manifest.max_context, budget, max(rings, default=None))
    copies = _PAIRWISE_COPIES if needs_pairs(manifest) else _CACHE_COPIES
    kept, skipped = [], []
    for probe in plan.probes:
        tokens = sum(len(held_tokens(probe.end, cache)) for cache in manifest.layers)
        one = cache_bytes(1, model["kv_heads"], model["head_dim"], tokens)
        if copies * one <= room:
            kept.append(probe)
        else:
            needed = gibibytes(copies * one)
            skipped.append(
                f"positions {probe.start} to {probe.end - 1} need {needed} of memory for caches, "
                f"the model leaves {gibibytes(room)}"
            )
    return replace(plan, probes=tuple(kept)), tuple(skipped)


def _compare_ort(
    package: Path, plan: ValidationPlan, references: References, rule: Rule, progress: Progress
) -> Compared:
    from ctx_export.runtime.session import open_session

    with open_session(package, "ort", providers=[_CPU]) as session:
        return compare_session(session, plan, references, rule, progress)


def _engine(manifest: Manifest, package: Path) -> _Engine | None:
    """The package's engine, if it has one."""
    if manifest.engine is None:
        return None
    from ctx_export.build.engine_network import context_nodes
    from ctx_export.targets._cuda_device import missing_gpu

    return _Engine(
        runtime=str(manifest.engine["runtime"]),
        plugin_layers=len(manifest.engine["plugin_layers"]),
        sites=len(context_nodes(package / MODEL_NAME)),
        missing=missing_gpu(),
    )


def _check_engine(package: Path, engine: _Engine | None) -> None:
    if engine is None:
        raise UserError(
            f"{package} has no engine to validate: export it with --engine tensorrt-rtx or "
            "tensorrt, or leave --engine out"
        )
    if engine.missing is not None:
        raise UserError(
            f"the {engine.runtime} engine cannot be validated here: {engine.missing}; run where "
            "there is a GPU, or leave --engine out"
        )


def _compare_engine(
    package: Path,
    plan: ValidationPlan,
    references: References,
    rule: Rule,
    engine: _Engine,
    progress: Progress,
) -> EngineSection:
    section = EngineSection(
        runtime=engine.runtime,
        plugin_layers=engine.plugin_layers,
        sites=engine.sites,
        state=f"not measured: no GPU ({engine.missing})",
        rule=rule.describe(),
    )
    if engine.missing is not None:
        return section
    from ctx_export.runtime.session import open_session

    with open_session(package, engine.runtime) as session:
        compared = compare_session(session, plan, references, rule, progress)
    return replace(section, state="measured", rows=compared.rows, problems=compared.problems)


def _inv_freq(manifest: Manifest) -> NDArray[np.float32]:
    return np.asarray(manifest.scaling["inv_freq"], np.float32)


def _facts(
    manifest: Manifest, settings: ReferenceSettings | PairwiseSettings, plan: ValidationPlan
) -> dict[str, str]:
    """What was compared, in words."""
    model = manifest.model
    twin = manifest.precision == "bf16"
    runtime = "onnxruntime, CPU" + (", float32 twin of the bfloat16 graph" if twin else "")
    order = ", layer by layer" if settings.by_layer else ""
    tokens = {probe.tokens for probe in plan.probes}
    probes = f", {len(plan.probes)} probes of {max(tokens)} tokens" if tokens else ""
    if isinstance(settings, PairwiseSettings):
        rotation = "attention pair by pair in float64 from the rules of positions and visibility"
    else:
        kind = settings.rope.parameters["rope_type"]
        rotation = f"float64 angles, cos and sin; rope_parameters of type {kind}"
    if manifest.quantised:
        rotation += ", keys and values rounded as the cache does"
    return {
        "model": f"{model['family']}, {model['layers']} layers, trained context "
        f"{model['original_context']}",
        "method": f"{manifest.method}, factor {manifest.factor:g}, {_reach(manifest)}",
        "caches": f"{describe_caches(manifest.layers)}; {manifest.cache_dtype}, "
        f"{package_cache_bytes(manifest)} bytes per sequence",
        "precision": manifest.precision,
        "runtime": runtime,
        "reference": f"PyTorch float32{order}, weights in {manifest.precision}, {rotation}",
        "compared": f"prefill, ragged chunks and decode of {plan.prefill} tokens{probes}",
    }


def _reach(manifest: Manifest) -> str:
    if manifest.max_context is None:
        return "any number of tokens"
    return f"up to {manifest.max_context}"


def _versions() -> dict[str, str]:
    from importlib import import_module

    names = ("torch", "transformers", "onnxruntime")
    return {name: str(import_module(name).__version__) for name in names}
