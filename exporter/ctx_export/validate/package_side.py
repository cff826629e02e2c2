"""What the package says: the same tokens through a session, cut in different ways."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.manifest import BOUNDED
from ctx_export.core.progress import Progress
from ctx_export.runtime.session import Session
from ctx_export.validate.compare import RowErrors, Rule, row_errors
from ctx_export.validate.positions import (
    ValidationPlan,
    decode_feeds,
    decoded_positions,
    feed_limit,
    probe_feeds,
    ragged_chunks,
)
from ctx_export.validate.reference_side import BlockReference, References
from ctx_export.validate.rows import Row
from ctx_export.validate.synthetic import Cache

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Rows of the table and what else went wrong, a line each."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    loss: tuple[float, float] | None = None  # (maximum, mean) error against unquantised caches


def compare_session(
    session: Session,
    plan: ValidationPlan,
    references: References,
    rule: Rule,
    progress: Progress,
) -> Compared:
    """Feed the plan's tokens to a session of one sequence and judge the logits by `rule`."""
    table = _Table(plan, rule)
    references = references.computed_in(rule.precision)
    tokens, block = references.tokens, references.prefill
    total = 2 * plan.prefill + sum(probe.tokens for probe in plan.probes)
    if _decodes_anew(session):
        total += sum(decode_feeds(plan, plan.prefill))
    feeder = Feeder(session, progress, total)
    table.add("prefill", block, prefill(feeder, tokens, block.positions))
    block = references.chunks or block
    table.add("chunks", block, chunked(feeder, tokens, block.positions))
    block = references.decode or references.prefill
    positions, logits = _decoded(feeder, plan, tokens)
    kept = np.isin(positions, block.positions)
    decoded_rows = np.searchsorted(block.positions, positions[kept])
    table.add("decode", block.part(decoded_rows), logits[kept])
    for probe, expected in references.probes:
        assert references.cache is not None
        past = references.cache.first(probe.start)
        ids = references.probe_tokens[: probe.tokens]
        logits = probed(feeder, past, ids)[expected.positions - probe.start]
        table.add("probe", expected, logits)
    return Compared(rows=tuple(table.rows), problems=tuple(table.problems), loss=table.loss)


class Feeder:
    """A session of one sequence whose progress is the tokens fed."""

    def __init__(self, session: Session, progress: Progress, total: int) -> None:
        self.session = session
        self.done = 0
        self._progress = progress
        self._total = total

    def feed(self, tokens: Ints, planned_length: int | None = None) -> Floats:
        """Logits [N,V] of the next tokens [N]."""
        logits: Floats = self.session.feed(tokens[None], planned_length)[0]
        self._moved(len(tokens))
        return logits

    def _moved(self, tokens: int) -> None:
        self.done += tokens
        self._progress.update(self.done, self._total)


def prefill(feeder: Feeder, tokens: Ints, rows: Ints) -> Floats:
    """Logits [R,V] of `rows`, the whole sequence planned and fed at once: the session cuts it into
    chunks."""
    most = feed_limit(feeder.session.contract.vocab)
    feeds = [most] * (len(tokens) // most) + [len(tokens) % most]
    return _fed(feeder, tokens, rows, feeds, len(tokens))


def chunked(feeder: Feeder, tokens: Ints, rows: Ints) -> Floats:
    """Logits [R,V] of `rows`, the sequence fed in ragged chunks."""
    return _fed(feeder, tokens, rows, ragged_chunks(len(tokens)))


def decoded(session: Session, plan: ValidationPlan, tokens: Ints) -> tuple[Ints, Floats]:
    """Positions [R] fed one token at a time, around each of the table's, and their logits.

    The session holds all of `tokens` and takes them back from the last position to the first.
    """
    logits: dict[int, Floats] = {}
    positions = decoded_positions(plan)
    for first, end in reversed(_runs(positions)):
        session.truncate(0, first)
        logits |= {i: session.feed(tokens[None, i : i + 1])[0] for i in range(first, end)}
    return np.asarray(positions, np.int64), np.concatenate([logits[i] for i in positions])


def _runs(positions: list[int]) -> list[tuple[int, int]]:
    """Ascending positions as runs first … end − 1."""
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and runs[-1][1] == position:
            runs[-1] = (runs[-1][0], position + 1)
        else:
            runs.append((position, position + 1))
    return runs


def decoded_anew(feeder: Feeder, plan: ValidationPlan, tokens: Ints) -> tuple[Ints, Floats]:
    """As `decoded`, fed again from the first token on: a ring takes few tokens back, and keys that
    were computed at another rope length are other keys."""
    positions = np.asarray(decoded_positions(plan), np.int64)
    feeds = decode_feeds(plan, feed_limit(feeder.session.contract.vocab))
    return positions, _fed(feeder, tokens, positions, feeds)


def _decodes_anew(session: Session) -> bool:
    contract = session.contract
    rings = any(layer.cache.policy == BOUNDED for layer in contract.layers)
    return rings or contract.rope_length is not None


def _decoded(feeder: Feeder, plan: ValidationPlan, tokens: Ints) -> tuple[Ints, Floats]:
    if _decodes_anew(feeder.session):
        return decoded_anew(feeder, plan, tokens)
    return decoded(feeder.session, plan, tokens)


def probed(feeder: Feeder, past: Cache, tokens: Ints) -> Floats:
    """Logits [N,V] of tokens that follow `past`: a chunk, then the last few one at a time."""
    feeder.session.reset()
    feeder.session.load_cache(past.keys, past.values, past.length)
    parts = np.split(tokens, np.cumsum(probe_feeds(len(tokens)))[:-1])
    return np.concatenate([feeder.feed(part) for part in parts])


def _fed(
    feeder: Feeder, tokens: Ints, rows: Ints, chunks: list[int], planned_length: int | None = None
) -> Floats:
    feeder.session.reset()
    kept: list[Floats] = []
    start = 0
    for chunk in chunks:
        if not chunk:
            continue
        wanted = rows[(rows >= start) & (rows < start + chunk)] - start
        kept.append(feeder.feed(tokens[start : start + chunk], planned_length)[wanted])
        start += chunk
    return np.concatenate(kept)


def _largest(errors: RowErrors | None, first: int, last: int) -> float | None:
    return None if errors is None else errors.at(first, last)[0]


class _Table:
    """Collects rows: one for each listed position of a block, and one for all of it."""

    def __init__(self, plan: ValidationPlan, rule: Rule) -> None:
        self._listed = plan.positions
        self._rule = rule
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self._losses: list[RowErrors] = []

    def add(self, how: str, block: BlockReference, logits: Floats) -> None:
        if not len(block.positions):
            return
        errors = row_errors(logits, block.logits, block.scale)
        # Behind a probe's synthetic cache only its own few tokens are rounded.
        if block.unquantised is not None and how != "probe":
            self._losses.append(row_errors(logits, block.unquantised, block.scale))
        where = f"positions {block.positions[0]} to {block.positions[-1]}"
        self.problems += [f"{how} of {where}: {problem}" for problem in errors.problems]
        for index in np.flatnonzero(np.isin(block.positions, self._listed)):
            self._row(how, block, errors, int(index), int(index))
        if len(block.positions) > 1:
            self._row(how, block, errors, 0, len(block.positions) - 1)

    @property
    def loss(self) -> tuple[float, float] | None:
        """(maximum, mean) of the errors against unquantised caches."""
        if not self._losses:
            return None
        maximum, mean = (
            np.concatenate([getattr(errors, name) for errors in self._losses])
            for name in ("maximum", "mean")
        )
        return float(maximum.max()), float(mean.mean())

    def _row(
        self, how: str, block: BlockReference, errors: RowErrors, first: int, last: int
    ) -> None:
        peer = block.peers.get(self._rule.precision)
        limit = self._rule.limit(peer, block.quantisation)
        maximum, mean = errors.at(first, last)
        self.rows.append(
            Row(
                position=int(block.positions[first]),
                last=int(block.positions[last]),
                compared=last - first + 1,
                how=how,
                max_error=maximum,
                mean_error=mean,
                limit=limit,
                transformers=_largest(block.unmodified, first, last),
                own_table=_largest(block.own_table, first, last),
                peer=_largest(peer, first, last),
                mean_limit=(
                    self._rule.mean_limit(peer, block.quantisation) if last > first else None
                ),
            )
        )
