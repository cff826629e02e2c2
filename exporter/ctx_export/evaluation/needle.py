"""Needles in a haystack: facts told once at some depth of a text, and asked for at its end.

Two forms. `pass-key` (Mohtashami and Jaggi, arXiv 2305.16300): five digits. `natural`: a sentence
about where somebody hid something (after G. Kamradt's test, 2023). With several needles the
others are of the same form and lie at other depths, so that the right one has to be told apart
(multi-key, RULER, arXiv 2404.06654).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.evaluation.scoring import Ints
from ctx_export.evaluation.subject import Subject
from ctx_export.evaluation.text import Codec

_DIGITS = 5


@cache
def _words(kind: str) -> list[str]:
    """Words that sentences are made of: names, colours, things, places."""
    text = (Path(__file__).parent / "words.json").read_text(encoding="utf-8")
    words: list[str] = json.loads(text)[kind]
    return words


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """What is told, what is asked at the end, and the answer, which begins with a space."""

    told: str
    asked: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A place of the grid: texts of `length` tokens, answer included; `depth` 0 is the beginning,
    1 the end."""

    length: int
    depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleSetting:
    """What is asked. `keys`: questions per cell, each with a needle and a part of the text of its
    own; `needles`: facts in a text, of which one is asked for."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    form: str = "pass-key"
    needles: int = 1
    keys: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or not self.depths:
            raise UserError("no lengths or no depths given: give --lengths and --depths")
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise UserError(f"depth {100 * depth:g} is not within 0 to 100 percent")
        if self.form not in FORMS:
            raise UserError(f"form is {self.form!r}: it must be one of {', '.join(FORMS)}")
        most = len(_words("names"))
        if not 1 <= self.needles <= most:
            raise UserError(f"needles is {self.needles}: give 1 to {most}")
        if self.keys < 1:
            raise UserError(f"keys is {self.keys}: give at least 1")

    @property
    def cells(self) -> list[Cell]:
        """The grid, shortest texts first."""
        lengths, depths = sorted(set(self.lengths)), sorted(set(self.depths))
        return [Cell(length=length, depth=depth) for length in lengths for depth in depths]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Tokens [N] of a text that ends with the answer, which begins at token `first`."""

    tokens: Ints
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether greedy decoding gives the answer, every token of it; and the answer's
    log-probability, summed over its tokens, in nats."""

    found: bool
    log_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """The answers of a subject in one cell."""

    subject: str
    length: int
    depth: float
    answers: tuple[Answer, ...]

    @property
    def found(self) -> float:
        """Share of the answers that are found."""
        return sum(answer.found for answer in self.answers) / len(self.answers)

    @property
    def log_probability(self) -> float:
        """Mean over the answers."""
        return sum(answer.log_probability for answer in self.answers) / len(self.answers)

    def to_json(self) -> dict[str, Any]:
        means = {"found": self.found, "log_probability": round(self.log_probability, 6)}
        return {**asdict(self), **means}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> CellResult:
        """Raises KeyError and TypeError for anything else."""
        return cls(
            subject=raw["subject"],
            length=raw["length"],
            depth=raw["depth"],
            answers=tuple(Answer(**answer) for answer in raw["answers"]),
        )


def _pass_keys(draw: np.random.Generator, count: int) -> list[Needle]:
    keys = [f"{number:0{_DIGITS}d}" for number in _distinct(draw, 10**_DIGITS, count)]
    if count == 1:
        told = "\nThe pass key is {0}. Remember it. {0} is the pass key.\n"
        asked = "\nWhat is the pass key? The pass key is"
        return [Needle(told=told.format(keys[0]), asked=asked, answer=f" {keys[0]}")]
    owners = _drawn(draw, "names", count)
    return [
        Needle(
            told=f"\nThe pass key of {owner} is {key}. Remember it. {key} is the pass key of "
            f"{owner}.\n",
            asked=f"\nWhat is the pass key of {owner}? The pass key of {owner} is",
            answer=f" {key}",
        )
        for owner, key in zip(owners, keys, strict=True)
    ]


def _sentences(draw: np.random.Generator, count: int) -> list[Needle]:
    owners = _drawn(draw, "names", count)
    places = _drawn(draw, "places", count)
    made = []
    for owner, place in zip(owners, places, strict=True):
        thing = " ".join(_drawn(draw, kind, 1)[0] for kind in ("colours", "things"))
        asked = f"\nWhere did {owner} hide the {thing}? {owner} hid the {thing} in"
        told = f"\nOne day {owner} hid the {thing} in {place}.\n"
        made.append(Needle(told=told, asked=asked, answer=f" {place}"))
    return made


FORMS: dict[str, Callable[[np.random.Generator, int], list[Needle]]] = {
    "pass-key": _pass_keys,
    "natural": _sentences,
}


def _drawn(draw: np.random.Generator, kind: str, count: int) -> list[str]:
    """`count` different words."""
    words = _words(kind)
    return [words[index] for index in _distinct(draw, len(words), count)]


def _distinct(draw: np.random.Generator, limit: int, count: int) -> list[int]:
    return [int(value) for value in draw.choice(limit, count, replace=False)]


def questions(codec: Codec, ids: Ints, cell: Cell, setting: NeedleSetting) -> list[Question]:
    """The questions of a cell, the same ones every time; `ids` [M] is the text they are hidden in,
    begun again where it is too short."""
    return [_question(codec, ids, cell, setting, number) for number in range(setting.keys)]


def _question(
    codec: Codec, ids: Ints, cell: Cell, setting: NeedleSetting, number: int
) -> Question:
    """One question; its needle depends on its number and the seed alone, not on the cell."""
    draw = np.random.default_rng([setting.seed, number])
    needles = FORMS[setting.form](draw, setting.needles)
    told = [codec.ids(needle.told) for needle in needles]
    asked = codec.ids(needles[0].asked)
    whole = codec.ids(needles[0].asked + needles[0].answer)
    # A tokenizer may join the question's end and the answer's beginning.
    shared = int(np.cumprod(asked == whole[: len(asked)]).sum())
    used = len(codec.beginning) + sum(map(len, told)) + len(whole)
    if used >= cell.length:
        raise UserError(
            f"length {cell.length} is too short: needle, question and answer alone are {used} "
            f"tokens; give --lengths above {used}"
        )
    filler = _filler(ids, cell.length - used, draw)
    places = [(cell.depth + index / len(told)) % 1.0 for index in range(len(told))]
    places[0] = cell.depth
    text = codec.begun(_hidden(filler, told, places))
    return Question(tokens=np.concatenate([text, whole]), first=len(text) + shared)


def _filler(ids: Ints, count: int, draw: np.random.Generator) -> Ints:
    """`count` tokens of the text from a drawn place on, going round at its end."""
    if not len(ids):
        raise UserError("the tokenizer makes no tokens of the text: name a file with other --text")
    start = int(draw.integers(0, max(1, len(ids) - count + 1)))
    try:
        return np.take(ids, np.arange(start, start + count), mode="wrap")
    except (MemoryError, ValueError):  # numpy's, of arrays too large to address
        raise UserError(
            f"a text of {count} tokens does not fit into memory: give smaller --lengths"
        ) from None


def _hidden(filler: Ints, told: Sequence[Ints], depths: Sequence[float]) -> Ints:
    """`filler` with each of `told` at its depth."""
    parts: list[Ints] = []
    last = 0
    for depth, fact in sorted(zip(depths, told, strict=True), key=lambda pair: pair[0]):
        at = round(depth * len(filler))
        parts += [filler[last:at], fact]
        last = at
    return np.concatenate([*parts, filler[last:]])


def ask(subject: Subject, asked: Sequence[Question]) -> tuple[Answer, ...]:
    """The subject's answers."""
    found = []
    for question in asked:
        scores = subject.score(question.tokens, question.first)
        total = round(-float(scores.losses.sum()), 6)
        found.append(Answer(found=bool(scores.likeliest.all()), log_probability=total))
    return tuple(found)
