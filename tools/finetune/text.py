"""Text as training windows: tokenised once, packed, and drawn in an order that a seed decides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError
from ctx_export.core.sizes import format_size

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Encode = Callable[[str], list[int]]

_PIECE = 1 << 20  # characters that the tokenizer is given at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Windows [B, length + 1] of token ids and the weight of each prediction [B, length]."""

    tokens: Ints
    weights: Floats


def read_texts(files: Sequence[Path]) -> list[str]:
    """The files' text; raises UserError for one that is no UTF-8 text or is empty."""
    texts = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"text {path} cannot be read as UTF-8 text: {reason}") from None
        if not text.strip():
            raise UserError(f"text {path} is empty: give a file with text to train on")
        texts.append(text)
    return texts


def load_encoder(directory: Path) -> Encode:
    """The tokenizer of a checkpoint directory, which adds no BOS of its own."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{directory} has no tokenizer.json: add it, text cannot be read without")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{path} cannot be read: {error}") from None

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def tokenise(encode: Encode, texts: Iterable[str], vocabulary: int) -> Ints:
    """All texts one after the other as token ids [N]."""
    parts = [np.array(encode(piece), np.int64) for text in texts for piece in _pieces(text)]
    tokens: Ints = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    if len(tokens) and tokens.max() >= vocabulary:
        raise UserError(
            f"the tokenizer gives token {tokens.max()} and the model has {vocabulary}: put the "
            "checkpoint's own tokenizer.json beside its weights"
        )
    return tokens


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces that end with a line, where it has lines."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


class Windows:
    """Windows of BOS and `length` tokens (of `length` + 1 tokens without a BOS) of a text [N].

    Window n of a run is the same however the run is cut: each time through the text takes its
    windows in another order and from another beginning, both of the seed.
    """

    def __init__(self, tokens: Ints, length: int, bos: int | None, seed: int) -> None:
        if len(tokens) <= length:
            raise UserError(
                f"the text has {len(tokens)} tokens and a window needs {length + 1}: give more "
                f"text, or a --length below {format_size(max(2, len(tokens)))}"
            )
        self._tokens, self._length, self._bos, self._seed = tokens, length, bos, seed
        self.count = (len(tokens) - 1) // length  # of one time through the text
        self._order = lru_cache(maxsize=1)(self._shuffled)

    def digest(self) -> str:
        """What tells this text from others."""
        return hashlib.sha256(self._tokens.astype("<i8").tobytes()).hexdigest()[:16]

    def __getitem__(self, number: int) -> Ints:
        """Window `number` [length + 1]; there is no last one."""
        time, place = divmod(number, self.count)
        start = int(self._order(time)[place])
        if self._bos is None:
            return self._tokens[start : start + self._length + 1]
        return np.concatenate([[self._bos], self._tokens[start : start + self._length]])

    def _shuffled(self, time: int) -> Ints:
        chosen = np.random.default_rng([self._seed, time])
        spare = (len(self._tokens) - 1) % self._length
        starts = int(chosen.integers(0, spare + 1)) + self._length * np.arange(self.count)
        return chosen.permutation(starts)


class Batches:
    """What each step trains on: windows of text, the first `questions` of them pass-key ones."""

    def __init__(
        self, windows: Windows, batch: int, accumulate: int, asked: Any = None, questions: int = 0
    ) -> None:
        self._windows, self._batch, self._accumulate = windows, batch, accumulate
        self._asked, self._questions = asked, questions

    def of_step(self, step: int) -> list[Batch]:
        """The batches of a step, counted from 0."""
        total = self._batch * self._accumulate
        rows, weights = [], []
        for row in range(total):
            window = self._windows[step * total + row]
            weight = np.ones(len(window) - 1, np.float32)
            if row < self._questions:
                window, weight = self._asked.row(window, step, row)
            rows.append(window)
            weights.append(weight)
        cuts = range(0, total, self._batch)
        return [
            Batch(
                tokens=np.stack(rows[cut : cut + self._batch]),
                weights=np.stack(weights[cut : cut + self._batch]),
            )
            for cut in cuts
        ]
