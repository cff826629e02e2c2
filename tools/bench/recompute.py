"""Time per token of streaming beside a sliding window with recomputation, in one run.

    python -m tools.bench.recompute [--caches 256,512,1024,2048,4096] [--tokens 16] [--json FILE]

For every cache size C, with the same random tokens on both sides, in float32 on a CPU:
  streaming       a package with 4 sinks and a window of C − 4, its ring full; each token is a call
  recomputation   a package with a full cache of C tokens, emptied for each token and fed the last
                  C tokens in one feed (the baseline of StreamingLLM, arXiv 2309.17453, 4.5)
Both compute the logits of the last token alone. They take turns, so that both meet whatever else
the machine does: four tokens are streamed, the first of which finds the processor's caches cold
and is not counted, then one is recomputed.
"""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ctx_export.cli.common import terminal_progress
from ctx_export.core.progress import Progress
from ctx_export.evaluation.scoring import Ints
from ctx_export.runtime.session import Session, open_session
from tools.bench.measure import machine, numbers, spread
from tools.bench.packages import export_packages

SINKS = 4
_RING_CHUNK = 16  # tokens of a call that fills the ring, which has C + 15 slots for it
_WARM_UP = 2  # turns
_BURST = 4  # streamed tokens of a turn
_SIDES = ("streaming", "recomputation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Time per token of one side at one cache size."""

    side: str
    cache: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    tokens: int


@click.command()
@click.option("--caches", default="256,512,1024,2048,4096", show_default=True)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Recomputed tokens, one in each turn.",
)
@click.option("--model", default="demo", show_default=True, help="A checkpoint.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(caches: str, tokens: int, model: str, threads: int, json_file: Path | None) -> None:
    """Compare streaming with recomputing a sliding window."""
    sizes = numbers(caches, "caches", least=SINKS + 1)
    details = machine(threads, ("ctx-export", "onnxruntime", "numpy"))
    click.echo(", ".join(f"{key} {value}" for key, value in details.items()))
    click.echo(f"{model}, float32, sinks {SINKS}, {tokens} turns for each cache size")
    click.echo(f"{'cache':>6} {'side':<14} {'ms/token':>9} {'p10':>9} {'p90':>9}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, terminal_progress() as progress:
        progress.stage("exporting")
        places = export_packages(model, Path(folder), wanted(sizes))
        for size in sizes:
            progress.stage(f"cache {size}")
            with ExitStack() as stack:
                sessions = {
                    side: stack.enter_context(_open(places[f"{side}-{size}"], threads))
                    for side in _SIDES
                }
                found = _compare(sessions, size, tokens, progress)
            rows += found
            for row in found:
                click.echo(
                    f"{row.cache:>6} {row.side:<14} {row.median_ms:>9.3f} {row.p10_ms:>9.3f} "
                    f"{row.p90_ms:>9.3f}"
                )
    for size in sizes:
        ours, theirs = (row.median_ms for row in rows if row.cache == size)
        click.echo(f"{size:>6} recomputation takes {theirs / ours:.1f} times as long")
    if json_file is not None:
        setting = {"model": model, "sinks": SINKS, "turns": tokens}
        report = {"machine": details, "setting": setting, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def wanted(sizes: list[int]) -> dict[str, dict[str, Any]]:
    """The options of both sides' packages for every size.

    The model counts as trained on that size: time does not depend on it, and neither side scales.
    """
    options: dict[str, dict[str, Any]] = {}
    for size in sizes:
        options[f"streaming-{size}"] = {
            "method": "streaming",
            "sinks": SINKS,
            "window": size - SINKS,
            "max_chunk": _RING_CHUNK,
            "original_context": size,
        }
        options[f"recomputation-{size}"] = {
            "method": "none",
            "target": size,
            "max_chunk": size,
            "original_context": size,
        }
    return options


def _open(place: Path, threads: int) -> Session:
    return open_session(place, threads=threads, providers=["CPUExecutionProvider"])


def _compare(
    sessions: dict[str, Session], size: int, tokens: int, progress: Progress
) -> list[Row]:
    """Alternate both sides at a cache of `size` tokens."""
    streaming, full = (sessions[side] for side in _SIDES)
    steps = (_WARM_UP + tokens) * _BURST
    vocab = int(full.manifest.model["vocab"])
    ids = np.random.default_rng(0).integers(3, vocab, 2 * size + steps)
    end = len(ids) - steps
    streaming.feed(ids[:end], logits="last")  # twice the cache: the ring has wrapped
    times: dict[str, list[float]] = {side: [] for side in _SIDES}
    for turn in range(-_WARM_UP, tokens):
        for place in range(_BURST):
            end += 1
            seconds = _timed(streaming, ids[end - 1 : end])
            if turn >= 0 and place:
                times["streaming"].append(seconds * 1e3)
        full.truncate(0, 0)
        seconds = _timed(full, ids[end - size : end])
        if turn >= 0:
            times["recomputation"].append(seconds * 1e3)
        progress.update(turn + 1, tokens)
    return [_row(side, size, measured) for side, measured in times.items()]


def _timed(session: Session, ids: Ints) -> float:
    """Seconds of a feed that asks for the last token's logits."""
    started = time.perf_counter()
    session.feed(ids, logits="last")
    return time.perf_counter() - started


def _row(side: str, size: int, times: list[float]) -> Row:
    median, low, high = spread(times)
    return Row(side=side, cache=size, median_ms=median, p10_ms=low, p90_ms=high, tokens=len(times))


if __name__ == "__main__":
    main()
