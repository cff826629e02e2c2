"""Advice on a checkpoint: its candidates exported one after the other, measured and removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.progress import Progress, SilentProgress
from ctx_export.evaluation.advise import (
    Advice,
    AdviseSetting,
    Candidate,
    Measured,
    Trial,
    candidates,
    choose,
    lacking,
)
from ctx_export.evaluation.needle import Cell, NeedleSetting, Question, ask, questions
from ctx_export.evaluation.perplexity import PerplexitySetting, point, windows
from ctx_export.evaluation.report_files import versions
from ctx_export.evaluation.scoring import Ints
from ctx_export.evaluation.subject import Opening, PackageSubject, Subject
from ctx_export.evaluation.text import Codec, describe, read_text

if TYPE_CHECKING:
    from ctx_export.frontends.source import Source


def advise(
    model: str,
    text: Path,
    folder: Path,
    setting: AdviseSetting,
    opening: Opening | None = None,
    progress: Progress | None = None,
) -> Advice:
    """Try everything in `setting` on the checkpoint `model`; packages go below `folder` and are
    removed once they are measured.

    Raises UserError for a target that is not beyond the trained length, for an unknown method, and
    for a text that is too short for two windows of the target.
    """
    from ctx_export.frontends.checkpoint import locate, read_checkpoint

    read = read_text(text)
    checkpoint = read_checkpoint(locate(model))
    spec = checkpoint.spec
    trained = trained_length(spec)
    _check(setting, trained)
    codec = Codec.of(checkpoint.directory, spec.bos_token_id, spec.vocab)
    material = Material(codec=codec, ids=codec.ids(read), trained=trained, setting=setting)
    material.check()
    bench = _Bench(model, material, folder, opening or Opening(), progress or SilentProgress())
    own = bench.own()
    trials = tuple(bench.trials(spec, own))
    return Advice(
        model=model,
        setting=setting,
        own=own,
        trials=trials,
        best=choose(trials),
        text=describe(text, read, material.ids),
        versions=versions("torch", "transformers"),
    )


def trained_length(spec: ModelSpec) -> int:
    """Tokens that a checkpoint is made for as it is, its own scaling included."""
    return max(spec.original_context, spec.max_position_embeddings)


def _check(setting: AdviseSetting, trained: int) -> None:
    from ctx_export import cache
    from ctx_export.scaling import find

    if setting.target <= trained:
        raise UserError(
            f"target {setting.target} is not beyond the {trained} tokens that the model is made "
            "for: nothing needs scaling; give a larger --target"
        )
    for method in setting.methods:
        if cache.find(method) is None:
            find(method)  # raises for an unknown name


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What candidates are measured on: the tokens `ids` [N] of a text, at the trained length and
    at the target, the same tokens scored at both."""

    codec: Codec
    ids: Ints
    trained: int
    setting: AdviseSetting

    def check(self) -> None:
        """Raises UserError for a text that is too short for the target."""
        self._windows(self.setting.target)
        self._questions(self.trained)

    def measure(self, subject: Subject, length: int) -> Measured:
        """Perplexity of the last tokens, and pass keys, of a subject at one of the two lengths."""
        scored = self._wanted.scored
        losses = [
            subject.score(window, length - scored).losses for window in self._windows(length)
        ]
        answers = ask(subject, self._questions(length))
        found = point(subject.name, np.stack(losses), scored)
        means = tuple(round(float(row.mean()), 6) for row in losses)
        return Measured(
            means=means,
            length=length,
            perplexity=found.perplexity,
            error=found.error,
            keys=sum(answer.found for answer in answers) / len(answers),
        )

    @property
    def _wanted(self) -> PerplexitySetting:
        lengths = (self.trained, self.setting.target)
        return PerplexitySetting(lengths=lengths, windows=self.setting.windows)

    def _windows(self, length: int) -> list[Ints]:
        return windows(self.ids, self.codec, self._wanted)[length]

    def _questions(self, length: int) -> list[Question]:
        depths = self.setting.depths
        keys = NeedleSetting(lengths=(length,), depths=depths, keys=self.setting.keys)
        return [
            question
            for depth in depths
            for question in questions(self.codec, self.ids, Cell(length=length, depth=depth), keys)
        ]


class _Bench:
    """A checkpoint that is traced once, and everything that measures its packages."""

    def __init__(
        self, model: str, material: Material, folder: Path, opening: Opening, progress: Progress
    ) -> None:
        self._model = model
        self._material = material
        self._folder = folder
        self._opening = opening
        self._progress = progress
        self._source: Source | None = None

    def own(self) -> Measured:
        """The model as it is."""
        length = self._material.trained
        with self._opened({"target": length}, "as it is") as subject:
            return self._material.measure(subject, length)

    def trials(self, spec: ModelSpec, own: Measured) -> Iterator[Trial]:
        """Of every method the candidates up to the first that holds, none with a larger factor
        than one that held."""
        setting = self._material.setting
        smallest = float("inf")
        for method in setting.methods:
            for candidate in candidates(method, spec, setting):
                if candidate.factor is not None and candidate.factor > smallest:
                    break
                trial = self._try(candidate, own)
                yield trial
                if trial.holds:
                    smallest = min(smallest, candidate.factor or smallest)
                    break

    def _try(self, candidate: Candidate, own: Measured) -> Trial:
        setting = self._material.setting
        made = Trial(
            method=candidate.method, factor=candidate.factor, options=candidate.options, lacks=""
        )
        try:
            with self._opened(candidate.options, candidate.name) as subject:
                short = self._material.measure(subject, own.length)
                long = self._material.measure(subject, setting.target)
        except UserError as error:
            return replace(made, lacks=str(error))
        lacks = lacking(own, short, long, setting.limits)
        return replace(made, short=short, long=long, lacks=lacks)

    @contextmanager
    def _opened(self, options: Mapping[str, Any], name: str) -> Iterator[Subject]:
        """The package with `options`, exported, open, and removed at the end."""
        from ctx_export.core.recipe import build_recipe
        from ctx_export.pipeline import export_source, load_source

        self._progress.stage(name)
        package = self._folder / "package"
        fixed = {"engine": "none", "validate": {"enabled": False}}
        given = {"model": self._model, "output": package}
        recipe = build_recipe(given, options={**fixed, **options})
        if self._source is None:
            self._source = load_source(recipe)
        try:
            export_source(self._source, recipe)
            with self._opening.open(package) as session:
                yield PackageSubject(name, session)
        finally:
            shutil.rmtree(package, ignore_errors=True)
