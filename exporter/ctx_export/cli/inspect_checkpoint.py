"""A checkpoint as `ctx-inspect` shows it: itself, a method's change, the runtimes' findings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ctx_export.cli.inspect_rows import Row, files_row, format_bytes, model_row, short
from ctx_export.core.sizes import format_size


def checkpoint_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    """A checkpoint's config.json and files, and what was asked about it."""
    rope, own = report["rope"], report["scaling"]
    yield "checkpoint", report["path"]
    yield "model", model_row(report["model"])
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
    given = ", ".join(f"{key} {short(value)}" for key, value in rope["parameters"].items())
    if given:
        yield "parameters", given
    yield from _windows(report["windows"])
    yield "weights", files_row(report["weights"])
    if report["export"]:
        yield "export", f"cannot be exported: {report['export']}"
    if "change" in report:
        yield from change_rows(report["change"])
    yield from runtime_rows(report["runtimes"])


def change_rows(change: Mapping[str, Any]) -> Iterator[Row]:
    """What a method changes, and the config.json that would say so."""
    for name in ("before", "after"):
        side = change[name]
        length = ", follows the length of the text" if side["follows_length"] else ""
        maximum = side["max_context"]
        yield (
            name,
            f"{side['method']}, factor {side['factor']:g}, {side['frequencies']} frequencies "
            f"{side['highest']:.6g} to {side['lowest']:.6g} rad/token, multiplier "
            f"{side['multiplier']:.6g}{length}",
        )
        yield (
            "",
            (f"{format_size(maximum)} tokens" if maximum else "any number of tokens")
            + f", {side['caches']}, {format_bytes(side['cache_bytes_per_sequence'])} per sequence",
        )
    if change["inexpressible"]:
        yield "config.json", f"cannot say this: {change['inexpressible']}"
    else:
        yield "config.json", json.dumps(change["config"])


def runtime_rows(findings: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """One row per finding."""
    for found in findings:
        who = f"{found['runtime']} {found['version']}"
        if found["verdict"] == "honoured":
            yield "runtime", f"{who} honours {found['setting']}"
            continue
        lost = "refuses" if found["verdict"] == "refused" else found["verdict"].upper() + ":"
        yield "runtime", f"{who} {lost} {found['setting']}: {found['reason']}"
        yield "", f"  {found['source']}"


def _windows(windows: Sequence[int]) -> Iterator[Row]:
    if not any(windows):
        return
    counted = Counter(windows)
    told = [
        f"{count} layers {f'see {window} tokens back' if window else 'see every token'}"
        for window, count in counted.items()
    ]
    yield "windows", ", ".join(told)
