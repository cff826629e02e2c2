"""A million tokens through a bounded cache: perplexity, time and memory, tenth by tenth.

    python -m tools.bench.stream [--tokens 1000000] [--sinks 4] [--window 252] [--json FILE]

The demo is exported as a float32 streaming package and fed BOS, then a passage, the first tokens
of its held-out text, again and again; the passage is tokenised once. Every tenth of the stream is
a whole number of passes, cut into the same chunks. A lead-in of the passage's last chunks, eight
times the cache, comes before the first tenth and is not measured: each tenth follows the same text
over a full ring, and tenths differ in nothing but how much came before them. Each token is scored
with the logits of the token before it.

Time per chunk has in it whatever else the machine does, so every fourth chunk is also fed, right
before or after, to a second session of the package that begins anew with each tenth: the median
ratio of such pairs ("/ fresh") says what the length of the stream costs.

Exits 1 unless, between the first and the last tenth, the cache stays as it is and the perplexity
within 5 %, and, where a tenth has at least 100 chunks, memory grows by at most 1 % and the time of
a chunk, relative to the fresh session's, by at most 10 %. Memory is that of both sessions: what is
resident, and what is private, which the system cannot shrink by taking pages back.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from ctx_export.cli.common import Size, terminal_progress
from ctx_export.core.progress import Progress
from ctx_export.evaluation.scoring import Doubles, Ints, Perplexity, losses
from ctx_export.runtime.session import Session, open_session
from tools.bench.measure import machine, own_memory, spread
from tools.bench.packages import export_packages
from tools.bench.perplexity import heldout_tokens

PARTS = 10
_LEAD = 8  # caches of tokens; more than one per layer, through which earlier text reaches on
_MOST_MEMORY, _MOST_TIME, _MOST_PERPLEXITY = 0.01, 0.10, 0.05
_PAIRED = 4  # every so many chunks a fresh session takes the same one
_JUDGED_CHUNKS = 100  # of a tenth: in fewer, the heap still settles and medians are noisy


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is streamed: `lead` tokens, then `tokens` in ten parts, each `passes` over the same
    `passage` tokens."""

    lead: int
    tokens: int
    sinks: int
    window: int
    chunk: int
    threads: int
    passage: int
    passes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenth:
    """One tenth of the stream. Times are of one chunk's feed, `against_fresh` is the median ratio
    to a fresh session's; memory is the most that was seen after a chunk."""

    until: int
    perplexity: float
    perplexity_error: float
    median_ms: float
    p10_ms: float
    p90_ms: float
    against_fresh: float
    resident_bytes: int
    private_bytes: int
    cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure of the last tenth beside the first's; `limit` None: reported, not judged."""

    what: str
    change: float
    limit: float | None
    passed: bool


@click.command()
@click.option("--tokens", type=Size(), default="1000000", show_default=True)
@click.option("--sinks", type=Size(zero=True), default=4, show_default=True)
@click.option("--window", type=Size(), default=252, show_default=True)
@click.option("--chunk", type=Size(), default=250, show_default=True, help="Tokens of a call.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    tokens: int, sinks: int, window: int, chunk: int, threads: int, json_file: Path | None
) -> None:
    """Stream held-out text through the demo with a bounded cache."""
    if tokens % (PARTS * chunk):
        raise click.UsageError(
            f"tokens is {tokens}: give a multiple of {PARTS * chunk}, ten parts of whole chunks"
        )
    bos, text = heldout_tokens()
    passage, passes = choose_passage(tokens // PARTS, len(text))
    setting = Setting(
        lead=-(-_LEAD * (sinks + window) // chunk) * chunk,
        tokens=tokens,
        sinks=sinks,
        window=window,
        chunk=chunk,
        threads=threads,
        passage=passage,
        passes=passes,
    )
    details = machine(threads, ("ctx-export", "onnxruntime", "numpy"))
    click.echo(", ".join(f"{key} {value}" for key, value in details.items()))
    click.echo(
        f"{tokens:,} tokens after BOS and a lead-in of {setting.lead:,}; sinks {sinks}, window "
        f"{window}, chunks of {chunk}\neach tenth: {_passes(passes)} over the first {passage:,} "
        f"of the held-out text's {len(text):,} tokens"
    )
    tenths, block_means = _measure(setting, bos, text)
    checks = _checks(tenths, tokens // PARTS // chunk)
    drift = float(np.abs(block_means[-1] - block_means[0]).max())
    click.echo(
        f"last tenth against first, largest difference of a chunk's mean loss: {drift:.1e} nats"
    )
    for check in checks:
        click.echo(_line(check))
    if json_file is not None:
        report = {
            "machine": details,
            "setting": asdict(setting),
            "tenths": [asdict(tenth) for tenth in tenths],
            "largest_loss_difference": drift,
            "checks": [asdict(check) for check in checks],
        }
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(check.passed for check in checks) else 1)


def choose_passage(part: int, available: int) -> tuple[int, int]:
    """(tokens, passes): `part` tokens as the fewest passes over at most `available` tokens."""
    passes = -(-part // available)
    while part % passes:
        passes += 1
    return part // passes, passes


def wanted(sinks: int, window: int, chunk: int) -> dict[str, dict[str, Any]]:
    """The options of the package."""
    options = {"sinks": sinks, "window": window, "max_chunk": chunk}
    return {"streaming": {"method": "streaming" if sinks else "sliding-window", **options}}


def _measure(setting: Setting, bos: int, text: Ints) -> tuple[list[Tenth], list[Doubles]]:
    """Every tenth, printed as it ends, and the mean losses of its chunks."""
    part = np.tile(text[: setting.passage], setting.passes)
    tenths, block_means = [], []
    with tempfile.TemporaryDirectory() as folder, terminal_progress() as progress:
        progress.stage("exporting")
        options = wanted(setting.sinks, setting.window, setting.chunk)
        place = export_packages("demo", Path(folder), options)["streaming"]
        with _open(place, setting) as session, _open(place, setting) as fresh:
            click.echo(_HEADER)
            for tenth, means in _stream(session, fresh, setting, _Text(bos, part), progress):
                click.echo(_row(tenth))
                tenths.append(tenth)
                block_means.append(means)
    return tenths, block_means


def _open(place: Path, setting: Setting) -> Session:
    return open_session(place, threads=setting.threads, providers=["CPUExecutionProvider"])


class _Text(NamedTuple):
    bos: int
    part: Ints  # the tokens of a tenth


def _stream(
    session: Session, fresh: Session, setting: Setting, text: _Text, progress: Progress
) -> Iterator[tuple[Tenth, Doubles]]:
    """Feed BOS, the lead-in and the ten parts; what each of the parts showed."""
    pieces = text.part.reshape(-1, setting.chunk)
    before = _begin(session, setting, text)  # the logits that score a chunk's first token
    for index in range(PARTS):
        progress.stage(f"tenth {index + 1} of {PARTS}")
        fresh.reset()
        _begin(fresh, setting, text)
        wall, means = np.zeros(len(pieces)), np.zeros(len(pieces))
        fresh_wall = np.full(len(pieces), np.nan)
        resident = private = 0
        for number, piece in enumerate(pieces):
            pair, first = divmod(number, _PAIRED)
            if first == 0 and pair % 2:  # either side goes first in turn
                _, fresh_wall[number] = _timed(fresh, piece)
            logits, wall[number] = _timed(session, piece)
            if first == 0 and not pair % 2:
                _, fresh_wall[number] = _timed(fresh, piece)
            means[number] = losses(np.concatenate([before, logits[:-1]]), piece).mean()
            before = logits[-1:].copy()
            resident, private = map(max, (resident, private), own_memory())
            progress.update(number + 1, len(pieces))
        perplexity = Perplexity.of(means)
        median, low, high = spread(wall * 1e3)
        yield (
            Tenth(
                until=(index + 1) * text.part.size,
                perplexity=perplexity.value,
                perplexity_error=perplexity.error,
                median_ms=median,
                p10_ms=low,
                p90_ms=high,
                against_fresh=float(np.nanmedian(wall / fresh_wall)),
                resident_bytes=resident,
                private_bytes=private,
                cache_bytes=session.cache_bytes,
            ),
            means,
        )


def _begin(session: Session, setting: Setting, text: _Text) -> NDArray[np.float32]:
    """Feed BOS and the lead-in; the logits [1,V] after it."""
    pieces = text.part.reshape(-1, setting.chunk)
    after = session.feed([text.bos], logits="last")
    for index in range(-setting.lead // setting.chunk, 0):
        after = session.feed(pieces[index % len(pieces)])[0, -1:].copy()
    return after


def _timed(session: Session, piece: Ints) -> tuple[NDArray[np.float32], float]:
    """The logits [N,V] of a chunk, and the seconds they took."""
    started = time.perf_counter()
    logits = session.feed(piece)[0]
    return logits, time.perf_counter() - started


def _checks(tenths: list[Tenth], chunks: int) -> list[Check]:
    """The last tenth beside the first one."""
    first, last = tenths[0], tenths[-1]

    def check(what: str, name: str, limit: float | None, *, both: bool = False) -> Check:
        change = getattr(last, name) / getattr(first, name) - 1
        size = abs(change) if both else change
        passed = limit is None or size <= limit
        return Check(what=what, change=change, limit=limit, passed=passed)

    long = chunks >= _JUDGED_CHUNKS
    return [
        check("resident memory", "resident_bytes", _MOST_MEMORY if long else None),
        check("private memory", "private_bytes", _MOST_MEMORY if long else None),
        check("cache", "cache_bytes", 0.0, both=True),
        check("perplexity", "perplexity", _MOST_PERPLEXITY, both=True),
        check("time relative to a fresh session", "against_fresh", _MOST_TIME if long else None),
        check("median time of a chunk", "median_ms", None),
    ]


_HEADER = (
    f"{'tokens':>9} {'perplexity':>18} {'ms/chunk':>9} {'p10':>7} {'p90':>7} {'/ fresh':>7} "
    f"{'resident MB':>11} {'private MB':>10} {'cache MB':>9}"
)


def _row(tenth: Tenth) -> str:
    perplexity = f"{tenth.perplexity:.4f} ± {tenth.perplexity_error:.4f}"
    return (
        f"{tenth.until:>9} {perplexity:>18} {tenth.median_ms:>9.2f} {tenth.p10_ms:>7.2f} "
        f"{tenth.p90_ms:>7.2f} {tenth.against_fresh:>7.3f} {tenth.resident_bytes / 1e6:>11.2f} "
        f"{tenth.private_bytes / 1e6:>10.2f} "
        f"{tenth.cache_bytes / 1e6:>9.3f}"
    )


def _line(check: Check) -> str:
    judged = "reported only"
    if check.limit is not None:
        judged = f"limit {check.limit:.0%}: {'ok' if check.passed else 'FAILED'}"
    return f"last tenth against first, {check.what}: {check.change:+.2%} ({judged})"


def _passes(count: int) -> str:
    return "one pass" if count == 1 else f"{count} passes"


if __name__ == "__main__":
    main()
