"""Pass keys hidden in the demo's held-out text, and whether a package finds them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctx_export import demo
from ctx_export.evaluation.scoring import Ints
from ctx_export.runtime.session import Session
from tools.bench.perplexity import bos_token

_ASKED = "\nWhat is the pass key? The pass key is"
_DIGITS = 5
_SEED = 20260101


def tokenizer() -> Any:
    """The demo's tokenizer."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(demo.path() / "tokenizer.json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt of as many tokens as it was made for, told and asked for once, with its answer."""

    depth: float  # where the key is told: 0 at the beginning, 1 at the end
    prompt: Ints
    answer: Ints


def questions(length: int, depths: Sequence[float], keys: int) -> list[Question]:
    """`keys` questions of `length` tokens per depth, the same ones every time; each is hidden in
    another part of the text."""
    codec = tokenizer()
    text = codec.encode(demo.heldout_text(), add_special_tokens=False).ids
    chosen = np.random.default_rng(_SEED)
    made = []
    for _ in range(keys):
        key = "".join(map(str, chosen.integers(0, 10, _DIGITS)))
        start = int(chosen.integers(0, len(text) - length))
        for depth in depths:
            made.append(_question(codec, text[start : start + length], depth, key))
    return made


def _question(codec: Any, text: list[int], depth: float, key: str) -> Question:
    told = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    told_ids, asked, both = (
        codec.encode(part, add_special_tokens=False).ids
        for part in (told, _ASKED, f"{_ASKED} {key}")
    )
    filler = text[: len(text) - len(told_ids) - len(asked) - 1]
    at = round(depth * len(filler))
    prompt = [bos_token(), *filler[:at], *told_ids, *filler[at:], *asked]
    return Question(
        depth=depth,
        prompt=np.array(prompt, np.int64),
        answer=np.array(both[len(asked) :], np.int64),
    )


def is_found(session: Session, question: Question) -> bool:
    """Whether greedy decoding gives every token of the answer."""
    session.reset()
    first = session.feed(question.prompt, logits="last")
    rest = session.feed(question.answer[:-1])[0]
    logits = np.concatenate([first, rest])
    return bool((logits.argmax(axis=1) == question.answer).all())
