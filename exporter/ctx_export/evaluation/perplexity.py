"""Perplexity against length: sliding windows, by the position of the token that is predicted.

A text is cut into windows of each length that end `stride` tokens apart, each read from scratch
with the model's beginning (BOS) in front. The perplexity at a length is that of the windows' last
`stride` tokens, which all have nearly the whole window before them (sliding evaluation, Press et
al., arXiv 2012.15832, as YaRN's tables do); the others are reported by position. Windows of all
lengths end at the same places: the same tokens are scored, with more or less before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.core.progress import Progress, SilentProgress
from ctx_export.evaluation.scoring import Doubles, Ints, Perplexity
from ctx_export.evaluation.subject import Subject
from ctx_export.evaluation.text import Codec, check_lengths

FIRST_BUCKET = 64  # positions of the first bucket; each further one doubles


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexitySetting:
    """What is measured. `stride`: tokens at a window's end that count; None: a quarter of the
    shortest length, at most 256. `windows`: most windows per length, spread over the text."""

    lengths: tuple[int, ...]
    stride: int | None = None
    windows: int = 16

    def __post_init__(self) -> None:
        if not self.lengths:
            raise UserError("no length given: give --lengths, such as --lengths 1k,4k")
        for length in self.lengths:
            if length < 4:
                raise UserError(f"length {length} is too short: give at least 4 tokens")
        if self.windows < 2:
            raise UserError(
                f"windows is {self.windows}: a standard error needs at least 2 windows"
            )
        if self.stride is not None and not 1 <= self.stride < min(self.lengths):
            raise UserError(
                f"stride is {self.stride}: give 1 to {min(self.lengths) - 1}, less than the "
                "shortest length"
            )

    @property
    def scored(self) -> int:
        """Tokens at the end of a window that make its perplexity."""
        return self.stride or min(256, min(self.lengths) // 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Tokens at positions `first` to `end` - 1 of the windows: their perplexity. Where windows end
    closer together than that many positions they share tokens here, and `error` is too small."""

    first: int
    end: int
    perplexity: float
    error: float  # one standard error, over windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One subject at one length. `error`: one standard error of `perplexity`, over windows."""

    subject: str
    length: int
    windows: int
    perplexity: float
    error: float
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityReport:
    """Everything measured, and on what."""

    setting: PerplexitySetting
    text: Mapping[str, Any]  # name, sha256, tokens
    points: tuple[Point, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def subjects(self) -> list[str]:
        """Names in the order given."""
        return list(dict.fromkeys(point.subject for point in self.points))

    def of(self, subject: str) -> list[Point]:
        """The points of one subject, by length."""
        found = [point for point in self.points if point.subject == subject]
        return sorted(found, key=lambda point: point.length)

    def to_json(self) -> dict[str, Any]:
        setting = {**asdict(self.setting), "stride": self.setting.scored}
        return {
            "setting": setting,
            "text": dict(self.text),
            "versions": dict(self.versions),
            "points": [asdict(point) for point in self.points],
        }

    def lines(self) -> list[str]:
        """A table: a row per subject, a column per length."""
        lengths = sorted({point.length for point in self.points})
        width = max(len(name) for name in (*self.subjects, "perplexity"))
        head = f"{'perplexity':<{width}}" + "".join(f"{length:>18}" for length in lengths)
        rows = [head]
        for name in self.subjects:
            cells = {p.length: f"{p.perplexity:.3f} ± {p.error:.3f}" for p in self.of(name)}
            row = "".join(f"{cells.get(length, ''):>18}" for length in lengths)
            rows.append(f"{name:<{width}}{row}")
        return rows


def windows(ids: Ints, codec: Codec, setting: PerplexitySetting) -> dict[int, list[Ints]]:
    """Windows by length, beginning included: those of all lengths end at the same tokens,
    `setting.scored` apart, at most as many as the setting says, spread evenly.

    Raises UserError for a text that is too short for two of the longest.
    """
    longest, step = max(setting.lengths), setting.scored
    begun = len(codec.beginning)
    if len(ids) < longest - begun + step:
        raise UserError(
            f"the text has {len(ids)} tokens, and two windows of {longest} need "
            f"{longest - begun + step}: give a longer text, or smaller --lengths"
        )
    ends = np.arange(longest - begun, len(ids) + 1, step)
    if len(ends) > setting.windows:
        ends = ends[np.linspace(0, len(ends) - 1, setting.windows).round().astype(int)]
    return {
        length: [codec.begun(ids[end - length + begun : end]) for end in ends]
        for length in sorted(set(setting.lengths))
    }


def measure(
    subjects: Sequence[Subject],
    codec: Codec,
    ids: Ints,
    setting: PerplexitySetting,
    progress: Progress | None = None,
) -> tuple[Point, ...]:
    """Every subject at every length on the tokens `ids` [N].

    Raises UserError for lengths beyond a subject's limit or the text.
    """
    progress = progress or SilentProgress()
    check_lengths(setting.lengths, [(subject.name, subject.limit) for subject in subjects])
    wanted = windows(ids, codec, setting)
    total = sum(length * len(cut) for length, cut in wanted.items())
    points = []
    for subject in subjects:
        progress.stage(subject.name)
        done = 0
        for length, cut in wanted.items():
            rows = []
            for window in cut:
                rows.append(subject.score(window, 1).losses)
                done += length
                progress.update(done, total)
            points.append(point(subject.name, np.stack(rows), setting.scored))
    return tuple(points)


def point(subject: str, found: Doubles, scored: int) -> Point:
    """From the losses [W,N-1] of the tokens at positions 1 … N-1 of W windows."""
    length = found.shape[1] + 1
    last = Perplexity.of(found[:, -scored:].mean(axis=1))
    return Point(
        subject=subject,
        length=length,
        windows=len(found),
        perplexity=last.value,
        error=last.error,
        buckets=tuple(_bucket(found, first, end) for first, end in bucket_edges(length)),
    )


def bucket_edges(length: int) -> list[tuple[int, int]]:
    """[1, 64), [64, 128), [128, 256), … up to `length`."""
    edges = [1]
    end = FIRST_BUCKET
    while end < length:
        edges.append(end)
        end *= 2
    return list(zip(edges, [*edges[1:], length], strict=True))


def _bucket(found: Doubles, first: int, end: int) -> Bucket:
    made = Perplexity.of(found[:, first - 1 : end - 1].mean(axis=1))
    return Bucket(first=first, end=end, perplexity=made.value, error=made.error)
