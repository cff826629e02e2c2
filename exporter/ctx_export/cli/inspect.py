"""`ctx-inspect`: what a package or a checkpoint holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ctx_export.cli.common import command, echo_json, json_option
from ctx_export.core.sizes import format_size

Row = tuple[str, str]


@command("ctx-inspect")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def main(path: Path, as_json: bool) -> None:
    """Show what PATH, a package or a checkpoint directory, holds."""
    from ctx_export.core.inspection import inspect_path

    report = inspect_path(path)
    if as_json:
        echo_json(report)
        return
    for name, value in _checkpoint(report) if report["kind"] == "checkpoint" else _package(report):
        click.echo(f"{name:<14} {value}")


def _package(report: Mapping[str, Any]) -> Iterator[Row]:
    scaling, maximum = report["scaling"], report["max_context"]
    yield "package", report["path"]
    yield "model", _model(report["model"])
    yield "method", f"{report['method']}, factor {report['factor']:g}"
    yield "scaling", _scaling(scaling)
    yield (
        "context",
        (f"{format_size(maximum)} tokens" if maximum else "any number of tokens")
        + f", trained on {report['model'].get('original_context', '?')}",
    )
    yield "limits", f"{report['max_batch']} sequences, {report['max_chunk']} new tokens a call"
    for told, layers in Counter(map(_cache, report["layers"])).items():
        yield "cache", f"{told}, {layers} layer{'s' * (layers != 1)}"
    yield (
        "KV cache",
        f"{format_bytes(report['cache_bytes_per_sequence'])} per sequence"
        f"{_quantised(report['kv_cache'])}",
    )
    yield "precision", report["precision"]
    yield "weights", f"{report['weights'].get('storage', '?')}, {_files(report['weights'])}"
    yield "engine", _engine(report["engine"])
    yield "plugins", _plugins(report["plugins"])
    yield "validation", _validation(report["validation"])
    yield from _tensors(report["io"])


def _checkpoint(report: Mapping[str, Any]) -> Iterator[Row]:
    rope, own = report["rope"], report["scaling"]
    yield "checkpoint", report["path"]
    yield "model", _model(report["model"])
    yield (
        "context",
        f"{format_size(report['max_position_embeddings'])} tokens, trained on "
        f"{format_size(report['original_context'])}",
    )
    yield "precision", str(report["precision"] or "not stated")
    share = rope["partial_rotary_factor"]
    yield "rotation", f"base {rope['theta']:g}" + (f", share {share:g}" if share != 1 else "")
    if own["available"]:
        yield (
            "scaling",
            (f"{own['method']}, factor {own['factor']:g}, multiplier {own['multiplier']:.6g}"),
        )
    else:
        yield "scaling", f"{own['method']}, not available in this version"
    given = ", ".join(f"{key} {_short(value)}" for key, value in rope["parameters"].items())
    if given:
        yield "parameters", given
    yield "weights", _files(report["weights"])


def format_bytes(count: int) -> str:
    """Bytes in the unit people read: 96 B, 1.5 KiB, 160.0 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _model(model: Mapping[str, Any]) -> str:
    return (
        f"{model.get('family', '?')}, {model.get('layers', '?')} layers, "
        f"{model.get('heads', '?')} heads on {model.get('kv_heads', '?')}, head dimension "
        f"{model.get('head_dim', '?')}, vocabulary {model.get('vocab', '?')}"
    )


def _scaling(scaling: Mapping[str, Any]) -> str:
    parts = [f"base {scaling['theta']:g}"] if "theta" in scaling else []
    parts += [f"rotary dimension {scaling['rotary_dim']}"] if "rotary_dim" in scaling else []
    parts += [f"multiplier {scaling['multiplier']:.6g}"] if "multiplier" in scaling else []
    parameters = scaling.get("parameters") or {}
    parts += [f"{key} {_short(value)}" for key, value in parameters.items() if value is not None]
    return ", ".join(parts)


def _cache(cache: Mapping[str, Any]) -> str:
    return (
        f"{cache['policy']} ({cache['rule']}), {cache['capacity']} slots, sinks "
        f"{cache['sinks']}, window {cache['window']}, keys {cache['keys']}"
    )


def _quantised(kv_cache: Mapping[str, Any] | None) -> str:
    if kv_cache is None:
        return ""
    return (
        f", {kv_cache.get('dtype', '?')} with scales per layer and KV head from "
        f"{kv_cache.get('calibration') or '?'}"
    )


def _engine(engine: Mapping[str, Any] | None) -> str:
    if engine is None:
        return "none"
    capabilities = engine.get("compute_capabilities") or ()
    on = f", compute capability {', '.join(map(str, capabilities))}" if capabilities else ""
    return f"{engine.get('runtime', '?')} {engine.get('version', '')}{on}"


def _plugins(plugins: Mapping[str, Any] | None) -> str:
    if plugins is None:
        return "none"
    told = {
        "matches": "its checksum matches",
        "differs": "ITS CHECKSUM DIFFERS from the manifest",
        "missing": "THE FILE IS MISSING",
    }
    operators = ", ".join(plugins.get("operators") or ())
    return f"{plugins.get('file')} ({operators}), {told[plugins['state']]}"


def _validation(validation: Mapping[str, Any] | None) -> str:
    if validation is None:
        return "not validated"
    state = "agrees with PyTorch" if validation.get("passed") else "DOES NOT AGREE with PyTorch"
    error = validation.get("max_error")
    largest = "not finite" if error is None else f"{error:.1e} of the logit scale"
    return f"{state} to position {validation.get('last_position', '?')}, largest error {largest}"


def _tensors(entries: list[Mapping[str, Any]]) -> Iterator[Row]:
    """Inputs and outputs, of the per-layer ones the first with their number."""
    per_role: dict[str, int] = {}
    for entry in entries:
        per_role[entry["role"]] = per_role.get(entry["role"], 0) + 1
    for entry in entries:
        if entry["layer"] > min(e["layer"] for e in entries if e["role"] == entry["role"]):
            continue
        count = per_role[entry["role"]]
        times = f" × {count}" if count > 1 else ""
        shape = ", ".join(map(str, entry["shape"]))
        yield entry["role"], f"{entry['name']} {entry['dtype']} [{shape}]{times}"


def _files(weights: Mapping[str, Any]) -> str:
    missing = weights["missing"]
    told = f", MISSING: {', '.join(missing)}" if missing else ""
    count = len(weights["files"])
    return f"{count} file{'s' * (count != 1)}, {format_bytes(weights['bytes'])}{told}"


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{len(value)} numbers]"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
