"""Pass keys and perplexity of the demo by method, at several times its trained context.

    python -m tools.eval.methods [--lengths 512,1k,2k,4k] [--methods yarn,landmark,...]
                                 [--keys 4] [--windows 8] [--json FILE]

Every method is exported for the length, or once where it takes any, in float32. Then
  pass keys   five digits told once, at five depths of held-out text, and asked for at its end; a
              key is found if greedy decoding gives all of its tokens
  perplexity  of the last 256 of each window's tokens, the windows being other parts of that text;
              its standard error is over windows
With --json the file is written after every row, and rows that it already has are not measured
again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ctx_export.cli.common import terminal_progress
from ctx_export.core.progress import Progress
from ctx_export.core.sizes import format_size, parse_size
from ctx_export.evaluation.scoring import Ints, Perplexity, losses
from ctx_export.runtime.session import Session, open_session
from tools.bench.measure import machine
from tools.bench.packages import export_packages
from tools.bench.perplexity import bos_token, heldout_tokens
from tools.eval.pass_keys import is_found, questions

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SCORED = 256  # tokens at the end of a window
_CHUNK = 256  # tokens of a call
# Chosen for this model: they leave some of its 256 positions out.
_WINDOW = 200
_LANDMARK = {"cache": "landmark", "window": 60, "landmark_block": 8, "landmark_topk": 12}
# The options of an export to `length` tokens.
METHODS: dict[str, Callable[[int], dict[str, Any]]] = {
    "none": lambda length: {"method": "none", "target": length},
    "linear": lambda length: {"method": "linear", "target": length},
    "ntk": lambda length: {"method": "ntk", "target": length},
    "yarn": lambda length: {"method": "yarn", "target": length},
    "streaming": lambda length: {"method": "streaming", "window": _WINDOW},
    "memory": lambda length: {"method": "memory", "window": _WINDOW - 16},
    "landmark": lambda length: {"target": length, **_LANDMARK},
    "self-extend": lambda length: {"method": "self-extend", "target": length},
    "dual-chunk": lambda length: {"method": "dual-chunk", "target": length},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method at one length: keys found of `keys` per depth of `DEPTHS`."""

    method: str
    length: int
    options: dict[str, Any]
    keys: int
    found: tuple[int, ...]
    perplexity: float
    perplexity_error: float

    def line(self) -> str:
        shares = "  ".join(f"{count / self.keys:5.2f}" for count in self.found)
        whole = sum(self.found) / (self.keys * len(self.found))
        return (
            f"{self.method:<14} {format_size(self.length):>6}  {shares}  {whole:5.2f}  "
            f"{self.perplexity:9.2f} ± {self.perplexity_error:.2f}"
        )


@click.command()
@click.option("--lengths", default="512,1k,2k,4k", show_default=True)
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--keys", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--windows", type=click.IntRange(min=2), default=8, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    lengths: str, methods: str, keys: int, windows: int, threads: int, json_file: Path | None
) -> None:
    """Print pass keys found by depth, and perplexity, per method and length."""
    sizes = [parse_size(part, what="lengths") for part in lengths.split(",")]
    names = methods.split(",")
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise click.UsageError(f"{unknown[0]} is unknown: choose from {', '.join(METHODS)}")
    details = machine(threads, ("ctx-export", "onnxruntime", "numpy"))
    setting = {"keys": keys, "windows": windows, "depths": DEPTHS, "scored": _SCORED}
    record = _Record(json_file, {"machine": details, "setting": setting})
    click.echo(", ".join(f"{key} {value}" for key, value in details.items()))
    click.echo(f"{keys} keys per depth, {windows} windows of text")
    shown = "  ".join(f"{depth:5.2f}" for depth in DEPTHS)
    click.echo(f"{'method':<14} {'tokens':>6}  {shown}    all  perplexity of the last {_SCORED}")
    with tempfile.TemporaryDirectory() as folder, terminal_progress() as progress:
        for name in names:
            for length in sizes:
                row = record.find(name, length)
                if row is None:
                    progress.stage(f"{name} at {format_size(length)}")
                    row = _measure(name, length, Path(folder), keys, windows, threads, progress)
                    record.add(row)
                click.echo(row.line())


def _measure(
    name: str,
    length: int,
    folder: Path,
    keys: int,
    windows: int,
    threads: int,
    progress: Progress,
) -> Row:
    options = {**METHODS[name](length), "max_chunk": _CHUNK}
    place = export_packages("demo", folder, {f"{name}-{length}": options})[f"{name}-{length}"]
    asked = questions(length - _ANSWER_ROOM, DEPTHS, keys)
    found = dict.fromkeys(DEPTHS, 0)
    with open_session(place, threads=threads, providers=["CPUExecutionProvider"]) as session:
        for number, question in enumerate(asked):
            found[question.depth] += is_found(session, question)
            progress.update(number + 1, len(asked) + windows)
        means = []
        for number, window in enumerate(_windows(length, windows)):
            means.append(_loss(session, window))
            progress.update(len(asked) + number + 1, len(asked) + windows)
    perplexity = Perplexity.of(np.array(means))
    return Row(
        method=name,
        length=length,
        options=options,
        keys=keys,
        found=tuple(found.values()),
        perplexity=perplexity.value,
        perplexity_error=perplexity.error,
    )


_ANSWER_ROOM = 8  # tokens of a length that the answer may take


def _windows(length: int, count: int) -> list[Ints]:
    """`count` windows of BOS and `length` - 1 tokens each, spread over the text."""
    text = heldout_tokens()[1]
    starts = np.linspace(0, len(text) - length, count).astype(np.int64)
    return [np.concatenate([[bos_token()], text[s : s + length - 1]]) for s in starts]


def _loss(session: Session, window: Ints) -> float:
    """Mean loss of a window's last tokens, in nats."""
    session.reset()
    first = len(window) - _SCORED
    before = session.feed(window[:first], logits="last")
    after = session.feed(window[first:-1])[0]
    return float(losses(np.concatenate([before, after]), window[first:]).mean())


class _Record:
    """The rows measured so far, in a file where one was named."""

    def __init__(self, file: Path | None, head: dict[str, Any]) -> None:
        self._file, self._head = file, head
        self._rows: list[Row] = []
        if file is not None and file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            if json.loads(json.dumps(head["setting"])) == stored["setting"]:
                entries = stored["rows"]
                self._rows = [Row(**{**row, "found": tuple(row["found"])}) for row in entries]

    def find(self, method: str, length: int) -> Row | None:
        options = {**METHODS[method](length), "max_chunk": _CHUNK}
        for row in self._rows:
            if (row.method, row.length, row.options) == (method, length, options):
                return row
        return None

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if self._file is not None:
            report = {**self._head, "rows": [asdict(entry) for entry in self._rows]}
            self._file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
