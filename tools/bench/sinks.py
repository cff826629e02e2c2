"""Perplexity of the demo over a small cache by its number of sinks, beside recomputation.

    python -m tools.bench.sinks [--sinks 0,1,2,4,8] [--tokens 20480] [--cache 256] [--stride 16]
                                [--json FILE]

The sequence is BOS and the demo's held-out text. The first `cache` tokens after BOS are fed and
not scored; the next `tokens` are scored, the same ones in every row:
  n sinks         streamed through a package with n sinks and a window of cache − n tokens, so that
                  every query sees `cache` tokens, its own included (0 sinks: a sliding window)
  recomputation   a full cache, emptied for every block of `stride` scored tokens and filled from
                  scratch with the `cache` tokens up to the block's last but one: a scored token
                  has cache − stride + 1 to cache tokens before it, at positions from 0, and BOS
                  is not among them
Standard errors are over blocks of `stride` tokens, those of differences over the same blocks.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ctx_export.cli.common import Size, terminal_progress
from ctx_export.core.progress import Progress
from ctx_export.evaluation.scoring import (
    Doubles,
    Ints,
    Perplexity,
    losses,
    mean_and_error,
)
from ctx_export.runtime.session import Session, open_session
from tools.bench.measure import machine, numbers
from tools.bench.packages import export_packages
from tools.bench.perplexity import heldout_tokens

_RECOMPUTATION = "recomputation"
_FED = 256  # tokens of one feed


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`difference` is in nats a token, this row's mean loss less recomputation's."""

    what: str
    perplexity: float
    perplexity_error: float
    difference: float
    difference_error: float


@click.command()
@click.option("--sinks", "sinks_text", default="0,1,2,4,8", show_default=True)
@click.option("--tokens", type=Size(), default=20480, show_default=True, help="Scored tokens.")
@click.option("--cache", type=Size(), default=256, show_default=True)
@click.option("--stride", type=Size(), default=16, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    sinks_text: str, tokens: int, cache: int, stride: int, threads: int, json_file: Path | None
) -> None:
    """Score held-out text with several numbers of sinks and with recomputation."""
    sinks = numbers(sinks_text, "sinks", least=0, most=cache - 1)
    bos, text = heldout_tokens()
    sequence = np.concatenate([[bos], text])[: 1 + cache + tokens]
    _check_sizes(tokens, cache, stride, len(sequence))
    details = machine(threads, ("ctx-export", "onnxruntime", "numpy"))
    click.echo(", ".join(f"{key} {value}" for key, value in details.items()))
    click.echo(
        f"{tokens:,} scored tokens after BOS and {cache} more, cache of {cache} tokens; "
        f"recomputation for every {stride} tokens, with {cache - stride + 1} to {cache} before "
        "each"
    )
    rows = _rows(_measure(sequence, sinks, cache, stride, threads))
    click.echo(f"{'':<14} {'perplexity':>16}   {'loss less recomputation, nats':>30}")
    for row in rows:
        perplexity = f"{row.perplexity:.3f} ± {row.perplexity_error:.3f}"
        difference = f"{row.difference:+.4f} ± {row.difference_error:.4f}"
        shown = difference if row.what != _RECOMPUTATION else ""
        click.echo(f"{row.what:<14} {perplexity:>16}   {shown:>30}".rstrip())
    if json_file is not None:
        setting = {"sinks": sinks, "tokens": tokens, "cache": cache, "stride": stride}
        report = {"machine": details, "setting": setting, "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _check_sizes(tokens: int, cache: int, stride: int, available: int) -> None:
    if tokens % stride or tokens < 2 * stride:
        raise click.UsageError(f"tokens is {tokens}: give a multiple of {stride}, the stride")
    if stride > cache:
        raise click.UsageError(f"cache is {cache}: give at least the stride, {stride}")
    if available < 1 + cache + tokens:
        raise click.UsageError(
            f"tokens is {tokens}: the held-out text has {available - 1 - cache} to score"
        )


def wanted(sinks: list[int], cache: int) -> dict[str, dict[str, Any]]:
    """The options of the packages by row. Recomputation's counts as trained on `cache` tokens:
    it is not scaled."""
    options: dict[str, dict[str, Any]] = {
        f"{count} sinks": {
            "method": "streaming" if count else "sliding-window",
            "sinks": count,
            "window": cache - count,
            "max_chunk": _FED,
        }
        for count in sinks
    }
    options[_RECOMPUTATION] = {
        "method": "none",
        "target": cache,
        "max_chunk": cache,
        "original_context": cache,
    }
    return options


def _measure(
    sequence: Ints, sinks: list[int], cache: int, stride: int, threads: int
) -> dict[str, Doubles]:
    """Mean losses of the scored blocks by row."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, terminal_progress() as progress:
        progress.stage("exporting")
        places = export_packages("demo", Path(folder), wanted(sinks, cache))
        for what, place in places.items():
            progress.stage(what)
            with open_session(
                place, threads=threads, providers=["CPUExecutionProvider"]
            ) as session:
                if what == _RECOMPUTATION:
                    scored = _recomputed(session, sequence, cache, stride, progress)
                else:
                    scored = _streamed(session, sequence, progress)[cache:]
            found[what] = scored.reshape(-1, stride).mean(axis=1)
    return found


def _streamed(session: Session, sequence: Ints, progress: Progress) -> Doubles:
    """Loss of every token but the first, all in one stream."""
    parts = []
    for start in range(0, len(sequence) - 1, _FED):
        fed = sequence[start : start + _FED]
        targets = sequence[start + 1 : start + 1 + len(fed)]
        parts.append(losses(session.feed(fed)[0, : len(targets)], targets))
        progress.update(start + len(fed), len(sequence))
    return np.concatenate(parts)


def _recomputed(
    session: Session, sequence: Ints, cache: int, stride: int, progress: Progress
) -> Doubles:
    """Loss of the tokens from 1 + cache on, each block after a window fed from scratch."""
    parts = []
    for first in range(1 + cache, len(sequence), stride):
        end = first + stride - 1  # the block's last token is predicted, not fed
        session.reset()
        logits = session.feed(sequence[end - cache : end])[0, -stride:]
        parts.append(losses(logits, sequence[first : first + stride]))
        progress.update(first + stride, len(sequence))
    return np.concatenate(parts)


def _rows(found: dict[str, Doubles]) -> list[Row]:
    rows = []
    for what, means in found.items():
        perplexity = Perplexity.of(means)
        difference, error = mean_and_error(means - found[_RECOMPUTATION])
        rows.append(
            Row(
                what=what,
                perplexity=perplexity.value,
                perplexity_error=perplexity.error,
                difference=difference,
                difference_error=error,
            )
        )
    return rows


if __name__ == "__main__":
    main()
