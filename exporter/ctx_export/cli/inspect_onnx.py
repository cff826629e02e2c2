"""An ONNX file as `ctx-inspect` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ctx_export.cli.inspect_checkpoint import change_rows, runtime_rows
from ctx_export.cli.inspect_rows import Row, format_bytes


def onnx_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """An ONNX file: who wrote it, its sites and tables, its weights, and what was asked."""
    yield "onnx file", report["path"]
    yield "producer", report["producer"]
    yield "operators", _operators(report)
    yield "weights", _weights(report["weights"])
    yield "cache", report["cache"]
    for told, layers in _grouped(report["layers"]).items():
        yield "attention", f"{told}, {layers} layer{'s' * (layers != 1)}"
    for table in report["tables"]:
        yield "table", _table(table)
    if report["tables_agree"]:
        yield "settings", report["tables_agree"]["reason"]
    if report["export"]:
        yield "export", f"cannot be exported: {report['export']}"
    if "change" in report:
        yield from change_rows(report["change"])
    yield from runtime_rows(report["runtimes"])


def _operators(report: Mapping[str, Any]) -> str:
    opsets = ", ".join(f"{name or 'ai.onnx'} {version}" for name, version in report["opsets"])
    return f"{report['nodes']} nodes, {opsets}"


def _weights(weights: Mapping[str, Any]) -> str:
    parts = [f"{format_bytes(weights['inside'])} inside"]
    if weights["external"]["files"]:
        files, size = weights["external"]["files"], weights["external"]["bytes"]
        parts.append(f"{format_bytes(size)} in {', '.join(files)}")
    if weights["external"]["missing"]:
        parts.append(f"MISSING: {', '.join(weights['external']['missing'])}")
    if weights["quantised"]:
        counts = [f"{count} {name}" for name, count in weights["quantised"].items()]
        parts.append(f"quantised: {', '.join(counts)}")
    return ", ".join(parts)


def _grouped(layers: list[Mapping[str, Any]]) -> Counter[str]:
    return Counter(
        f"{layer['heads']} heads on {layer['kv_heads']}, head dimension {layer['head_dim']}, "
        f"{layer['layout']}, "
        + (f"window {layer['window']}" if layer["window"] else "every token seen")
        for layer in layers
    )


def _table(table: Mapping[str, Any]) -> str:
    base = table["base"]
    what = f"plain, base {base:g}" if base is not None else "no plain base"
    return (
        f"{table['frequencies']} frequencies {table['highest']:.6g} to {table['lowest']:.6g} "
        f"rad/token, {what}, multiplier {table['multiplier']:.6g}, layers {table['layers']}"
    )
