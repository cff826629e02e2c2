"""A package as `ctx-inspect` shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ctx_export.cli.inspect_rows import Row, files_row, format_bytes, model_row, short
from ctx_export.core.io_contract import GENAI
from ctx_export.core.rules import rule_of_json
from ctx_export.core.sizes import format_size


def package_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """A package's manifest and the state of its files."""
    scaling, maximum = report["scaling"], report["max_context"]
    yield "package", report["path"]
    yield "model", model_row(report["model"])
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
    yield "weights", f"{report['weights'].get('storage', '?')}, {files_row(report['weights'])}"
    if report["io_contract"] == GENAI:
        yield "interface", "onnxruntime-genai's, for its Generator; sessions do not open it"
    yield "engine", _engine(report["engine"])
    yield "plugins", _plugins(report["plugins"])
    yield "validation", _validation(report["validation"])
    yield from _tensors(report["io"])


def _scaling(scaling: Mapping[str, Any]) -> str:
    parts = [f"base {scaling['theta']:g}"] if "theta" in scaling else []
    parts += [f"rotary dimension {scaling['rotary_dim']}"] if "rotary_dim" in scaling else []
    parts += [f"multiplier {scaling['multiplier']:.6g}"] if "multiplier" in scaling else []
    parameters = scaling.get("parameters") or {}
    parts += [f"{key} {short(value)}" for key, value in parameters.items() if value is not None]
    return ", ".join(parts)


def _cache(cache: Mapping[str, Any]) -> str:
    rule = rule_of_json(cache["rule"], cache.get("parameters"))
    own = f", {rule.describe()}" if rule is not None else ""
    return (
        f"{cache['policy']} ({cache['rule']}), {cache['capacity']} slots, sinks "
        f"{cache['sinks']}, window {cache['window']}, keys {cache['keys']}{own}"
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
