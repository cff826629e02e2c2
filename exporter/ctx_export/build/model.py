"""A package's model.onnx, its weights and its manifest: a source rewritten as a plan says."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx_ir as ir

from ctx_export.build.weights import StoredWeights, Storing, store_weights
from ctx_export.core.manifest import MODEL_NAME, Manifest
from ctx_export.core.plan import Plan
from ctx_export.core.progress import Progress
from ctx_export.frontends.source import Source
from ctx_export.passes.rewrite import rewrite
from ctx_export.passes.verify import verify

_MADE_WITH = ("ctx-export", "torch", "transformers", "onnx-ir", "onnxscript")


def rewritten(source: Source, plan: Plan) -> ir.Model:
    """A copy of the source's graph with `ctx` nodes, verified."""
    model = source.model.clone()
    rewrite(model, plan)
    verify(model, plan)
    return model


def write_model(
    model: ir.Model,
    source: Source,
    plan: Plan,
    directory: Path,
    progress: Progress,
    *,
    hard_links: bool = True,
) -> Manifest:
    """Write a rewritten graph with its weights into `directory`; the manifest, without engine and
    validation, is the caller's to save. Without `hard_links` its
    weight files are its own."""
    from_file = source.file is not None
    # onnx.load would refuse the user's own file once it has a second hard link.
    how = Storing(move_constants=from_file, hard_links=hard_links and not from_file)
    stored = store_weights(model.graph, source.weights, directory, progress, how)
    ir.save(model, directory / MODEL_NAME)
    return _manifest(source, plan, stored)


def _manifest(source: Source, plan: Plan, stored: StoredWeights) -> Manifest:
    spec = plan.spec
    return Manifest(
        model={
            "family": spec.family,
            "layers": spec.layers,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "vocab": spec.vocab,
            "original_context": plan.original_context,
            "bos_token_id": spec.bos_token_id,
            "eos_token_ids": list(spec.eos_token_ids),
        },
        method=plan.method,
        scaling=plan.scaling_json(),
        factor=plan.factor,
        max_context=plan.max_context,
        max_batch=plan.max_batch,
        max_chunk=plan.max_chunk,
        layers=plan.caches,
        precision=plan.precision,
        io=plan.io,
        kv_cache=plan.kv_cache_json(),
        weights={"files": list(stored.files), "storage": stored.storage},
        generator=_versions(*_MADE_WITH),
        source=None if source.file is None else source.file.to_json(source.checkpoint),
    )


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
