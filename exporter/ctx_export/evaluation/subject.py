"""What is evaluated: a package in a session, or transformers' own model of its checkpoint.

Both answer one question: how likely the tokens of a text are, each given all before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import BOUNDED, Manifest
from ctx_export.evaluation.scoring import Ints, Scores
from ctx_export.runtime.session import Session, open_session

if TYPE_CHECKING:
    from ctx_export.validate.torch_reference import TorchReference

# Tokens whose logits are in memory at once.
_ROWS = 512


class Subject(Protocol):
    """A model with its context. `limit`: most tokens it takes, None for any number."""

    @property
    def name(self) -> str: ...

    @property
    def limit(self) -> int | None: ...

    def score(self, tokens: Ints, first: int) -> Scores:
        """Scores of tokens[first:], `first` of at least 1; the text [N] is read from scratch.

        Methods whose frequencies follow the length use N throughout. Raises UserError for logits
        that are not finite.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How packages are opened: onnxruntime's threads and providers, or another backend."""

    backend: str = "ort"
    threads: int | None = None
    providers: tuple[str, ...] = ()

    def open(self, package: Path) -> Session:
        return open_session(
            package, self.backend, threads=self.threads, providers=self.providers or None
        )


class PackageSubject:
    """A package, through a session of one sequence."""

    def __init__(self, name: str, session: Session) -> None:
        self.name = name
        self._session = session

    @property
    def limit(self) -> int | None:
        return self._session.contract.max_context

    def score(self, tokens: Ints, first: int) -> Scores:
        session = self._session
        session.reset()
        length = None if session.contract.rope_length is None else len(tokens)
        logits = session.feed(tokens[:first], length, logits="last")
        parts = [Scores.of(logits, tokens[first : first + 1], self.name)]
        # The last token is predicted, not fed.
        for start in range(first, len(tokens) - 1, _ROWS):
            end = min(start + _ROWS, len(tokens) - 1)
            rows = session.feed(tokens[start:end], length)[0]
            parts.append(Scores.of(rows, tokens[start + 1 : end + 1], self.name))
        return Scores.joined(parts)


class TransformersSubject:
    """transformers' model of a checkpoint with a package's method, as transformers computes it.

    The weights are rounded to the package's precision and computed with in float32 on the CPU.
    Every text is one forward without a cache, methods that follow the length at that length.
    """

    def __init__(self, name: str, manifest: Manifest, checkpoint: Path) -> None:
        from ctx_export.validate.rope_parameters import Scaling

        self.name = name
        self._checkpoint = checkpoint
        self._precision = manifest.precision
        self._by_length = manifest.has_role("rope_length")
        self._scaling = Scaling.of(manifest)
        self._limit = manifest.max_context
        self._held: tuple[int | None, TorchReference] | None = None
        _check_has_method(name, manifest)

    @property
    def limit(self) -> int | None:
        return self._limit

    def score(self, tokens: Ints, first: int) -> Scores:
        from ctx_export.validate.torch_reference import Rotary

        model = self._model(len(tokens))
        parts = []
        rows = range(first - 1, len(tokens) - 1)
        logits = model.logits(tokens[:-1], rows=rows, rotary=Rotary.UNMODIFIED)[0]
        for start in range(0, len(rows), _ROWS):
            targets = tokens[first + start : first + start + _ROWS]
            parts.append(Scores.of(logits[start : start + _ROWS], targets, self.name))
        return Scores.joined(parts)

    def _model(self, length: int) -> TorchReference:
        """The model; where the table follows the length, one made for `length`."""
        from ctx_export.validate.torch_reference import (
            TorchReference,
            hugging_face_rope,
            load_config,
        )

        key = length if self._by_length else None
        if self._held is None or self._held[0] != key:
            scaling = replace(self._scaling, target=length) if self._by_length else self._scaling
            rope = hugging_face_rope(scaling, load_config(self._checkpoint))
            made = TorchReference(self._checkpoint, rope, weights=self._precision)
            self._held = (key, made)
        return self._held[1]


def _check_has_method(name: str, manifest: Manifest) -> None:
    rules = sorted({layer.rule for layer in manifest.layers if layer.policy == BOUNDED})
    own = {"causal", "sliding-window"}
    far = sorted({layer.rule for layer in manifest.layers} - own)
    if far or (rules and manifest.max_context is None):
        raise UserError(
            f"{name} has the cache policy {(far or rules)[0]}, which transformers lacks: leave "
            "--transformers out for it"
        )


@contextmanager
def open_subjects(
    packages: Sequence[Path], opening: Opening, checkpoint: Path | None = None
) -> Iterator[list[Subject]]:
    """The packages by their directory's names, and after each, where `checkpoint` is given, the
    same method in transformers."""
    names = package_names(packages)
    with ExitStack() as stack:
        subjects: list[Subject] = []
        for name, package in zip(names, packages, strict=True):
            session = stack.enter_context(opening.open(package))
            subjects.append(PackageSubject(name, session))
            if checkpoint is not None:
                made = TransformersSubject(f"{name} (transformers)", session.manifest, checkpoint)
                subjects.append(made)
        yield subjects


def package_names(packages: Sequence[Path]) -> list[str]:
    """A name per package: the directory's own, or its path where two are alike."""
    short = [package.resolve().name for package in packages]
    if len({package.resolve() for package in packages}) < len(packages):
        raise UserError(f"{_twice(packages)} is given twice: name every package once")
    return [
        name if short.count(name) == 1 else str(package)
        for name, package in zip(short, packages, strict=True)
    ]


def _twice(packages: Sequence[Path]) -> Path:
    places = [package.resolve() for package in packages]
    return next(p for p, place in zip(packages, places, strict=True) if places.count(place) > 1)
