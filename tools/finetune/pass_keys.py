"""Pass-key questions to train on, in the words and with the weight that the demo was trained with.

See exporter/ctx_export/demo/make_demo.py: five digits, told somewhere in a window of text and
asked for at its end.
"""

from __future__ import annotations

import numpy as np

from ctx_export.core.errors import UserError
from tools.finetune.text import Encode, Floats, Ints

_DIGITS = 5
_ANSWER_WEIGHT = 3.0  # of the question's predictions, among the text's of 1
_STREAM = 1  # keeps these random numbers apart from those of the windows' order


class PassKeys:
    """Turns windows of text into questions; the key and its place are of seed, step and row."""

    def __init__(self, encode: Encode, length: int, bos: int | None, seed: int) -> None:
        self._encode, self._first = encode, [] if bos is None else [bos]
        self._seed = seed
        told, asked = self._words("0" * _DIGITS)
        needed = len(told) + len(asked) + 1
        if length < 2 * needed:
            raise UserError(
                f"length is {length} and a pass-key question has {needed} tokens: give a --length "
                f"of at least {2 * needed}, or leave --pass-keys out"
            )

    def row(self, window: Ints, step: int, row: int) -> tuple[Ints, Floats]:
        """A question over the text of `window` [length + 1] and its weights [length]."""
        chosen = np.random.default_rng([self._seed, _STREAM, step, row])
        told, asked = self._words("".join(map(str, chosen.integers(0, 10, _DIGITS))))
        count = len(window) - len(self._first) - len(told) - len(asked)
        filler = window[len(self._first) :][:count]
        at = int(chosen.integers(0, count + 1))
        weights = np.ones(len(window) - 1, np.float32)
        weights[-len(asked) :] = _ANSWER_WEIGHT
        question = np.concatenate([self._first, filler[:at], told, filler[at:], asked])
        return question.astype(np.int64), weights

    def _words(self, key: str) -> tuple[list[int], list[int]]:
        told = self._encode(f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
        return told, self._encode(f"\nWhat is the pass key? The pass key is {key}.\n")
