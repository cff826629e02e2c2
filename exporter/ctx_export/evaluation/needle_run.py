"""A needle run: cells measured one after the other or spread over workers, kept as they come.

`needle.cells.jsonl` has a line per finished cell under a digest of everything that it depends on,
so that a run that was interrupted, or one with other lengths, measures only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ctx_export.core.manifest import FILE_NAME, Manifest
from ctx_export.core.progress import Progress, SilentProgress
from ctx_export.evaluation.needle import Cell, CellResult, NeedleSetting, ask, questions
from ctx_export.evaluation.report_files import versions
from ctx_export.evaluation.scoring import Ints
from ctx_export.evaluation.subject import (
    Opening,
    PackageSubject,
    TransformersSubject,
    package_names,
)
from ctx_export.evaluation.sweep import Spread, spread
from ctx_export.evaluation.text import Codec, check_lengths, common_codec, describe, read_text

CELLS_NAME = "needle.cells.jsonl"
_READ = (".onnx", ".data", ".safetensors", ".engine", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleRun:
    """What a run is made of. `checkpoint`: also ask transformers' model of it."""

    packages: tuple[Path, ...]
    text: Path
    setting: NeedleSetting
    opening: Opening
    checkpoint: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleReport:
    """All cells of a run, and what they were measured on."""

    setting: NeedleSetting
    text: Mapping[str, Any]
    cells: tuple[CellResult, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def subjects(self) -> list[str]:
        return list(dict.fromkeys(cell.subject for cell in self.cells))

    def of(self, subject: str) -> list[CellResult]:
        return [cell for cell in self.cells if cell.subject == subject]

    def to_json(self) -> dict[str, Any]:
        return {
            "setting": asdict(self.setting),
            "text": dict(self.text),
            "versions": dict(self.versions),
            "cells": [cell.to_json() for cell in self.cells],
        }

    def lines(self) -> list[str]:
        """Per subject a table of the share found: a row per depth, a column per length."""
        rows = []
        lengths = sorted({cell.length for cell in self.cells})
        for name in self.subjects:
            found = {(cell.length, cell.depth): cell.found for cell in self.of(name)}
            whole = sum(found.values()) / len(found)
            rows.append(f"{name}: {100 * whole:.0f} % found")
            rows.append(f"{'depth':>7}" + "".join(f"{length:>9}" for length in lengths))
            for depth in sorted({cell.depth for cell in self.of(name)}):
                row = "".join(f"{100 * found[(length, depth)]:>7.0f} %" for length in lengths)
                rows.append(f"{100 * depth:>5.0f} %{row}")
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One cell of one subject, with all that a worker needs."""

    subject: str
    package: Path
    checkpoint: Path | None  # of transformers' model, None: the package itself
    cell: Cell
    setting: NeedleSetting
    opening: Opening
    text: Path
    content: str  # a digest of the package's files, the text and the checkpoint's files
    key: str


def run(
    asked: NeedleRun,
    folder: Path,
    how: Spread | None = None,
    progress: Progress | None = None,
) -> NeedleReport:
    """Measure every cell that `folder` has not, and return them all in the grid's order.

    Raises UserError for lengths beyond a package's maximum or too short for the question, and for
    packages that read the text differently.
    """
    progress = progress or SilentProgress()
    text = read_text(asked.text)
    codec = common_codec(asked.packages, text)
    ids = codec.ids(text)
    jobs = _jobs(asked, hashlib.sha256(text.encode()).hexdigest())
    for cell in asked.setting.cells:
        questions(codec, ids, cell, asked.setting)  # refuses before any work
    log = _Log(folder / CELLS_NAME)
    missing = [job for job in jobs if job.key not in log.found]
    progress.stage("needles")
    done = len(jobs) - len(missing)
    progress.update(done, len(jobs))
    try:
        for key, result in spread(measure_job, missing, how):
            log.add(key, result)
            done += 1
            progress.update(done, len(jobs))
    finally:
        close_open()
    # The same package may have had another name when a cell was measured.
    cells = tuple(replace(log.found[job.key], subject=job.subject) for job in jobs)
    return NeedleReport(
        setting=asked.setting,
        text=describe(asked.text, text, ids),
        cells=cells,
        versions=versions(*(("torch", "transformers") if asked.checkpoint else ())),
    )


def _jobs(asked: NeedleRun, text: str) -> list[Job]:
    """All cells of all subjects; `text` is the text's digest."""
    jobs = []
    lengths = asked.setting.lengths
    for name, package in zip(package_names(asked.packages), asked.packages, strict=True):
        manifest = Manifest.load(package)
        check_lengths(lengths, [(name, manifest.max_context)])
        sides: list[tuple[str, Path | None]] = [(name, None)]
        if asked.checkpoint is not None:
            other = f"{name} (transformers)"
            TransformersSubject(other, manifest, asked.checkpoint)  # refuses what it cannot be
            sides.append((other, asked.checkpoint))
        for subject, checkpoint in sides:
            content = _content(package, text, checkpoint)
            for cell in asked.setting.cells:
                jobs.append(
                    Job(
                        subject=subject,
                        package=package.resolve(),
                        checkpoint=checkpoint,
                        cell=cell,
                        setting=asked.setting,
                        opening=asked.opening,
                        text=asked.text.resolve(),
                        content=content,
                        key=_key(asked, cell, content, torch=checkpoint is not None),
                    )
                )
    return jobs


def _key(asked: NeedleRun, cell: Cell, content: str, *, torch: bool) -> str:
    """A digest of everything that a cell's answers depend on."""
    setting, opening = asked.setting, asked.opening
    parts = {
        "content": content,
        "backend": None if torch else opening.backend,
        "providers": None if torch else opening.providers,
        "form": setting.form,
        "needles": setting.needles,
        "keys": setting.keys,
        "seed": setting.seed,
        "length": cell.length,
        "depth": cell.depth,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _content(package: Path, text: str, checkpoint: Path | None) -> str:
    """A digest of all that is read: the package by its manifest and by the size and age of its
    files, the text by its own digest, and a checkpoint's files."""
    digest = hashlib.sha256((package / FILE_NAME).read_bytes())
    digest.update(text.encode())
    for folder in (package,) if checkpoint is None else (package, checkpoint):
        digest.update(_ages(folder))
    return digest.hexdigest()


def _ages(folder: Path) -> bytes:
    """Names, sizes and ages of a directory's files."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ and path.name != FILE_NAME:
            stat = path.stat()
            lines.append(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n")
    return "".join(lines).encode()


class _Log:
    """Finished cells by key, in a file that grows by a line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, CellResult] = dict(_stored(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written anew: a line that an interrupted run left half-written would spoil the next one.
        path.write_text("".join(_line(key, cell) for key, cell in self.found.items()), "utf-8")

    def add(self, key: str, cell: CellResult) -> None:
        self.found[key] = cell
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(key, cell))


def _line(key: str, cell: CellResult) -> str:
    return json.dumps({"key": key, **cell.to_json()}) + "\n"


def _stored(path: Path) -> Iterator[tuple[str, CellResult]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            raw = json.loads(line)
            yield raw["key"], CellResult.from_json(raw)
        except (ValueError, KeyError, TypeError):
            continue  # the line that an interruption cut off


# What a worker has open: the last job's subject, and the text's tokens. A worker of Dask lives
# through many runs and takes as many jobs at once as it has threads: a session takes one.
_OPEN: dict[str, Any] = {}
_ONE_AT_A_TIME = threading.RLock()


def measure_job(job: Job) -> tuple[str, CellResult]:
    """The job's key and result; what it opens stays open for the next job in this process."""
    with _ONE_AT_A_TIME:
        place = (job.package, job.checkpoint, job.opening, job.content)
        if _OPEN.get("place") != place:
            close_open()
            _OPEN.update(subject=_open_subject(job), tokens=_tokens(job), place=place)
        codec, ids = _OPEN["tokens"]
        asked = questions(codec, ids, job.cell, job.setting)
        answers = ask(_OPEN["subject"], asked)
    result = CellResult(
        subject=job.subject, length=job.cell.length, depth=job.cell.depth, answers=answers
    )
    return job.key, result


def _open_subject(job: Job) -> PackageSubject | TransformersSubject:
    if job.checkpoint is not None:
        return TransformersSubject(job.subject, Manifest.load(job.package), job.checkpoint)
    _OPEN["session"] = job.opening.open(job.package)
    return PackageSubject(job.subject, _OPEN["session"])


def _tokens(job: Job) -> tuple[Codec, Ints]:
    codec = Codec.of_package(job.package)
    return codec, codec.ids(read_text(job.text))


def close_open() -> None:
    """Close what the last job of this process left open."""
    with _ONE_AT_A_TIME:
        session = _OPEN.pop("session", None)
        _OPEN.clear()
        if session is not None:
            session.close()
