"""A report as JSON values: bytes and operations as exact whole numbers, estimates named so."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from typing import Any

from ctx_export.planning.fit import Fit
from ctx_export.planning.kv_cache import CacheKind, KvCache
from ctx_export.planning.memory import ACTIVATIONS, Memory, layer_workspaces
from ctx_export.planning.report import Figures, Report, Row
from ctx_export.planning.work import Decode, Operations, Prefill


def report_json(report: Report) -> dict[str, Any]:
    """All that a report knows."""
    source, spec, counted = report.source, report.source.spec, report.source.parameters
    return {
        "model": {
            "name": source.name,
            "family": spec.family,
            "layers": spec.layers,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "hidden": spec.hidden,
            "vocab": spec.vocab,
            "max_position_embeddings": spec.max_position_embeddings,
            "original_context": spec.original_context,
        },
        "target": report.target,
        "max_batch": report.max_batch,
        "precision": report.precision,
        "kv_cache_dtype": report.kv_cache_dtype,
        "weights": {
            "bytes": report.weights.bytes,
            "exact": report.weights.exact,
            "origin": report.weights.origin.name.lower(),
            "parameters": report.weights.numbers,
            "counted_parameters": counted.total,
            "counted_exactly": counted.exact,
            "tied": counted.tied,
            "matrices": counted.matrices,
            "active_matrices": counted.active_matrices,
        },
        "reserve": report.reserve,
        "methods": [_row(row) for row in report.rows],
        "notes": list(report.notes),
    }


def _row(row: Row) -> dict[str, Any]:
    shown = {"method": row.name, "cache": row.cache, "refused": row.refusal}
    return shown if row.figures is None else {**shown, **_figures(row.figures)}


def _figures(figures: Figures) -> dict[str, Any]:
    plan, memory = figures.plan, figures.memory
    return {
        "factor": plan.factor,
        "max_context": plan.max_context,
        "max_chunk": plan.max_chunk,
        "kv_cache": _kv_cache(figures.kv, memory),
        "workspace": {
            "bytes": memory.workspace,
            "contexts": memory.contexts,
            "layers": layer_workspaces(figures.kv, figures.call),
        },
        "exact_bytes": memory.exact,
        "estimated": {
            "activation_bytes": memory.activations,
            "formula": ACTIVATIONS,
            "growing_bytes": memory.growing,
            "needed_bytes": memory.needed,
        },
        "prefill": _prefill(figures.prefill),
        "decode": _decode(figures.decode),
        "fits": [_fit(fit, figures.decode) for fit in figures.fits],
    }


def _kv_cache(kv: KvCache, memory: Memory) -> dict[str, Any]:
    return {
        "dtype": kv.dtype,
        "bytes_per_token": _number(kv.token_bytes),
        "bytes_per_sequence": kv.sequence_bytes,
        "bytes": memory.caches,
        "layers": [_kind(kind) for kind in kv.kinds],
    }


def _kind(kind: CacheKind) -> dict[str, Any]:
    return {
        **asdict(kind.cache),
        "layers": kind.layers,
        "kv_heads": kind.kv_heads,
        "head_dim": kind.head_dim,
        "dtype": kind.dtype,
        "bytes_per_token": _number(kind.token_bytes),
        "bytes_per_sequence": kind.sequence_bytes,
    }


def _prefill(prefill: Prefill) -> dict[str, Any]:
    return {
        "tokens": prefill.tokens,
        "calls": prefill.calls,
        "pairs": prefill.pairs,
        **_operations(prefill.operations),
        "weight_bytes": prefill.weight_bytes,
        "kv_cache_bytes": prefill.cache_bytes,
        "bytes": prefill.bytes,
    }


def _decode(decode: Decode) -> dict[str, Any]:
    return {
        "tokens": decode.tokens,
        "sequences": decode.batch,
        **_operations(decode.operations),
        "weight_bytes": decode.weight_bytes,
        "active_weight_bytes": decode.active_weight_bytes,
        "kv_cache_bytes": decode.cache_bytes,
        "most_kv_cache_bytes": decode.most_cache_bytes,
        "bytes": decode.bytes,
    }


def _operations(operations: Operations) -> dict[str, int]:
    return {
        "operations": operations.total,
        "matrix_operations": operations.matrices,
        "active_matrix_operations": operations.active_matrices,
        "attention_operations": operations.attention,
    }


def _fit(fit: Fit, decode: Decode) -> dict[str, Any]:
    return {
        "memory": fit.budget.name,
        "memory_bytes": fit.budget.memory_bytes,
        "shared_with_cpu": fit.budget.shared,
        "usable_bytes": fit.usable,
        "needed_bytes": fit.needed,
        "fits": fit.fits,
        "largest_context": fit.context,
        "any_context": fit.context is None,
        "context_limit": fit.context_limit,
        "largest_batch": fit.batch,
        "decode_ms_lower_bound": fit.budget.milliseconds(decode.bytes),
    }


def _number(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)
