"""Text to evaluate on, as tokens of a package's tokenizer, and windows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.evaluation.scoring import Ints
from ctx_export.runtime.text import TOKENIZER_NAME, TextCodec


def read_text(path: Path) -> str:
    """A UTF-8 file; raises UserError where it cannot be read or holds nothing but space."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"text {path} is not UTF-8 (byte {error.start}): convert it") from None
    except OSError as error:
        raise UserError(f"text {path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"text {path} is empty: name a file with text like what will be read")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A tokenizer, with what begins every text of its model: BOS or nothing."""

    codec: TextCodec
    beginning: tuple[int, ...]
    where: str  # what it belongs to, for messages
    vocab: int

    @classmethod
    def of(cls, directory: Path, bos_token_id: int | None, vocab: int) -> Codec:
        """That of a package or checkpoint; raises UserError where it has none that can be read."""
        codec = TextCodec.load(directory, bos_token_id)
        beginning = tuple(codec.beginning)
        return cls(codec=codec, beginning=beginning, where=str(directory), vocab=vocab)

    @classmethod
    def of_package(cls, package: Path) -> Codec:
        """Raises UserError where it has no tokenizer that can be read."""
        model = Manifest.load(package).model
        return cls.of(package, model.get("bos_token_id"), int(model["vocab"]))

    def ids(self, text: str) -> Ints:
        """Tokens of `text` [N], nothing put in front."""
        ids = np.array(self.codec.plain(text), np.int64)
        if len(ids) and ids.max() >= self.vocab:
            raise UserError(
                f"the tokenizer of {self.where} does not fit its model: it gives token "
                f"{ids.max()} and the vocabulary has {self.vocab}; copy the checkpoint's own "
                "tokenizer.json there"
            )
        return ids

    def begun(self, ids: Ints) -> Ints:
        """`ids` with the model's beginning in front."""
        return np.concatenate([np.array(self.beginning, np.int64), ids])


def common_codec(packages: Sequence[Path], text: str) -> Codec:
    """The tokenizer of all packages; raises UserError where they read `text` differently."""
    codecs = [Codec.of_package(package) for package in packages]
    first = codecs[0]
    for other in codecs[1:]:
        # The whole text: tokenizers may differ in a few tokens that come late.
        alike = _same_file(first, other) or np.array_equal(first.ids(text), other.ids(text))
        if not alike or first.beginning != other.beginning:
            raise UserError(
                f"{first.where} and {other.where} have different tokenizers, and perplexities "
                "per token would not compare: evaluate them one by one"
            )
    return first


def _same_file(first: Codec, other: Codec) -> bool:
    files = [Path(codec.where) / TOKENIZER_NAME for codec in (first, other)]
    return all(file.is_file() for file in files) and (
        files[0].read_bytes() == files[1].read_bytes() and first.vocab == other.vocab
    )


def check_lengths(lengths: Sequence[int], limits: Sequence[tuple[str, int | None]]) -> None:
    """Raises UserError for a length beyond the maximum of a package, `limits` by name."""
    for name, limit in limits:
        longest = max(lengths)
        if limit is not None and longest > limit:
            raise UserError(
                f"length {longest} is over the {limit} tokens that {name} was made for: give "
                f"--lengths up to {limit}, or export it with --target {longest}"
            )


def describe(path: Path, text: str, ids: Ints) -> dict[str, Any]:
    """What was read, for a report: the file's name, a digest of the text, its tokens."""
    return {
        "name": path.name,
        "sha256": sha256(text.encode()).hexdigest(),
        "tokens": len(ids),
    }
