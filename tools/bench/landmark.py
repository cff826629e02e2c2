"""Decoding with landmark retrieval beside full attention, in one run: time and bytes read.

    python -m tools.bench.landmark [--contexts 32k,128k] [--block 64] [--topk 16] [--window 512]
                                   [--threads 2] [--json FILE]

Two float32 packages of the demo with one frequency table, yarn's of 16 times its context: every
token seen, and landmark's choice among blocks. Both caches are filled with the same synthetic keys
and values; then one token at a time is decoded, in rounds that alternate. The bytes are what
attention reads of the caches for one token by its rule, each number once: all keys and values, or
the means of the blocks, and the keys and values of sinks, of every query head's own blocks and of
the tokens after the candidates.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ctx_export.cli.common import terminal_progress
from ctx_export.core.manifest import CacheInfo, Manifest
from ctx_export.core.rules import Landmark
from ctx_export.core.sizes import format_size, parse_size
from ctx_export.runtime.session import Session, open_session
from tools.bench.decode import synthetic_caches
from tools.bench.measure import machine, spread
from tools.bench.packages import export_packages

_FACTOR = 16  # positions of both, times what was trained
_ROOM = 256  # tokens decoded behind a context, at most
_ELEMENT = 4  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One side at one context: milliseconds of a token, and bytes that its attention reads."""

    side: str
    context: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    bytes_read: int


@click.command()
@click.option("--contexts", default="32k,128k", show_default=True)
@click.option("--block", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--topk", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--window", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=16, help="Tokens of a round.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    contexts: str,
    block: int,
    topk: int,
    window: int,
    rounds: int,
    tokens: int,
    threads: int,
    json_file: Path | None,
) -> None:
    """Print milliseconds and bytes read per decoded token, landmark beside full attention."""
    lengths = [parse_size(part, what="contexts") for part in contexts.split(",")]
    if (rounds + 1) * tokens > _ROOM:
        raise click.UsageError(f"{rounds} rounds of {tokens} tokens: give at most {_ROOM} in all")
    target = max(lengths) + _ROOM
    common = {"method": "yarn", "factor": _FACTOR, "target": target}
    choice = {"landmark_block": block, "landmark_topk": topk, "window": window}
    details = machine(threads, ("ctx-export", "onnxruntime", "numpy"))
    click.echo(", ".join(f"{key} {value}" for key, value in details.items()))
    click.echo(f"blocks of {block} tokens, {topk} chosen, window {window}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, terminal_progress() as progress:
        progress.stage("exporting")
        wanted = {"full": common, "landmark": {**common, "cache": "landmark", **choice}}
        places = export_packages("demo", Path(folder), wanted)
        for length in lengths:
            progress.stage(f"decoding at {format_size(length)}")
            rows += _measured(places, length, rounds, tokens, threads)
    click.echo(f"{'context':>8} {'side':<9} {'ms/token':>9} {'p10':>8} {'p90':>8} {'MB read':>8}")
    for row in rows:
        times = f"{row.median_ms:>9.3f} {row.p10_ms:>8.3f} {row.p90_ms:>8.3f}"
        context = format_size(row.context)
        click.echo(f"{context:>8} {row.side:<9} {times} {row.bytes_read / 1e6:>8.2f}")
    for length in lengths:
        full, landmark = (row for row in rows if row.context == length)
        time_share = landmark.median_ms / full.median_ms
        share = landmark.bytes_read / full.bytes_read
        click.echo(
            f"{format_size(length):>8} landmark takes {time_share:.2f} of the time and reads "
            f"{share:.3f} of the bytes"
        )
    if json_file is not None:
        setting = {"contexts": lengths, **choice, "rounds": rounds, "tokens": tokens}
        report = {"machine": details, "setting": setting, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def bytes_read(manifest: Manifest, context: int) -> int:
    """Bytes of the caches that the attention of one token at position `context` reads."""
    model = manifest.model
    per_row = int(model["head_dim"]) * _ELEMENT
    heads, kv_heads = int(model["heads"]), int(model["kv_heads"])
    return sum(per_row * _rows(cache, context, heads, kv_heads) for cache in manifest.layers)


def _rows(cache: CacheInfo, position: int, heads: int, kv_heads: int) -> int:
    """Rows of keys and of values, over all KV heads."""
    rule = cache.parameters
    if not isinstance(rule, Landmark):
        return 2 * kv_heads * (position + 1)
    candidates = max(0, position + 1 - cache.window - cache.sinks) // rule.block
    after = position + 1 - cache.sinks - candidates * rule.block
    choosing = kv_heads if rule.shared else heads
    chosen = choosing * min(candidates, rule.topk) * rule.block
    return kv_heads * candidates + 2 * (kv_heads * (cache.sinks + after) + chosen)


def _measured(
    places: dict[str, Path], context: int, rounds: int, tokens: int, threads: int
) -> list[Row]:
    """Alternating rounds of both packages behind `context` tokens."""
    sessions: dict[str, Session] = {}
    times: dict[str, list[float]] = {name: [] for name in places}
    try:
        for name, place in places.items():
            sessions[name] = session = open_session(place, threads=threads)
            caches = synthetic_caches(session.manifest, context)
            session.load_cache([key for key, _ in caches], [value for _, value in caches], context)
        ids = np.random.default_rng(1).integers(3, 2000, tokens)
        for repetition in range(rounds + 1):
            for name, session in sessions.items():
                spent = _round(session, ids.tolist())
                times[name] += spent if repetition else []  # the first round warms up
        manifests = {name: session.manifest for name, session in sessions.items()}
    finally:
        for session in sessions.values():
            session.close()
    return [_row(name, context, times[name], manifests[name]) for name in places]


def _round(session: Session, tokens: Sequence[int]) -> list[float]:
    spent = []
    for token in tokens:
        started = time.perf_counter()
        session.feed([[token]], logits="last")
        spent.append((time.perf_counter() - started) * 1e3)
    return spent


def _row(side: str, context: int, times: list[float], manifest: Any) -> Row:
    median, low, high = spread(times)
    return Row(
        side=side,
        context=context,
        median_ms=median,
        p10_ms=low,
        p90_ms=high,
        bytes_read=bytes_read(manifest, context),
    )


if __name__ == "__main__":
    main()
