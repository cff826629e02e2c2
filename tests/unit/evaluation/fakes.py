"""Subjects whose answers are known: they read tokens as the rule says, nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ctx_export.evaluation.scoring import Ints, Scores
from ctx_export.evaluation.text import Codec


@dataclass
class Uniform:
    """Finds every token equally likely among `vocab`; the likeliest is 0."""

    vocab: int
    name: str = "uniform"
    limit: int | None = None
    read: list[Ints] = field(default_factory=list)

    def score(self, tokens: Ints, first: int) -> Scores:
        self.read.append(tokens)
        targets = tokens[first:]
        return Scores.of(np.zeros((len(targets), self.vocab), np.float32), targets)


class Letters:
    """A tokenizer of one token a character, its code point; BOS is 1 where there is one."""

    def __init__(self, beginning: tuple[int, ...] = (1,)) -> None:
        self.beginning = list(beginning)

    def plain(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def letters(beginning: tuple[int, ...] = (1,), vocab: int = 256) -> Codec:
    return Codec(codec=Letters(beginning), beginning=beginning, where="letters", vocab=vocab)


def text_of(tokens: Ints) -> str:
    """What tokens of `Letters` say, without BOS."""
    return "".join(chr(token) for token in tokens if token != 1)
