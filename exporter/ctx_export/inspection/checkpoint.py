"""What a checkpoint holds, what a method would change, and what runtimes make of its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctx_export.core.errors import UserError
from ctx_export.inspection.files import read_json, weight_files

if TYPE_CHECKING:
    from ctx_export.core.model_spec import ModelSpec
    from ctx_export.core.rope_settings import RopeSettings
    from ctx_export.inspection.question import Question
    from ctx_export.inspection.scaling_settings import ScalingSettings

PRECISION_OF = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def inspect_checkpoint(directory: Path, question: Question) -> dict[str, Any]:
    """A checkpoint's shape, position settings and weight files, from its config.json; what the
    method in question would change; and the runtimes' findings on the settings that result."""
    from ctx_export.frontends.checkpoint import model_spec, read_config
    from ctx_export.inspection.change import describe_change
    from ctx_export.inspection.scaling_settings import read_scaling_settings

    config = read_config(directory)
    precision = config.get("dtype") or config.get("torch_dtype")
    spec = model_spec(config, PRECISION_OF.get(str(precision), "fp32"))
    report: dict[str, Any] = {
        "kind": "checkpoint",
        "path": str(directory),
        "model": _model_facts(spec),
        "max_position_embeddings": spec.max_position_embeddings,
        "original_context": spec.original_context,
        "precision": precision,
        "rope": asdict(spec.rope),
        "windows": list(spec.windows),
        "scaling": own_scaling(spec, spec.rope),
        "export": _refusal(config),
        "weights": weight_files(directory, _weight_names(directory)),
    }
    asked: Mapping[str, Any] | None = config
    if question.about_a_method:
        report["change"] = describe_change(config, spec, question.recipe(directory))
        asked = report["change"].pop("new_config")
    report["runtimes"] = (
        [] if asked is None else findings(read_scaling_settings(asked), question.runtimes)
    )
    return report


def findings(settings: ScalingSettings, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """What the runtimes make of `settings`, as JSON values."""
    from ctx_export.inspection.runtimes import judge

    return [
        {**asdict(finding), "verdict": finding.verdict.value}
        for finding in judge(settings, wanted)
    ]


def own_scaling(spec: ModelSpec, rope: RopeSettings) -> dict[str, Any]:
    """The table that a checkpoint's own settings give at its full length."""
    from ctx_export.scaling import names, resolve

    if rope.method not in names():
        return {"method": rope.method, "available": False}
    reach = max(spec.max_position_embeddings, spec.original_context)
    resolved = resolve(rope.method, spec.rotary_shape(rope=rope), reach, None, rope.parameters)
    return {
        "method": rope.method,
        "available": True,
        "factor": resolved.factor,
        "multiplier": resolved.table.multiplier,
        "inv_freq": [float(value) for value in resolved.table.inv_freq],
        **resolved.table.details,
    }


def _model_facts(spec: ModelSpec) -> dict[str, Any]:
    return {
        "family": spec.family,
        "layers": spec.layers,
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab": spec.vocab,
    }


def _refusal(config: Mapping[str, Any]) -> str | None:
    """Why the checkpoint cannot be exported, where config.json already tells."""
    from ctx_export.frontends.refusals import check_supported

    try:
        check_supported(config)
    except UserError as error:
        return str(error)
    return None


def _weight_names(directory: Path) -> list[str]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return sorted(set(read_json(index).get("weight_map", {}).values()))
    return sorted(path.name for path in directory.glob("*.safetensors"))
