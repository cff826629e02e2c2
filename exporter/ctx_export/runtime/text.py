"""Text in and out: a package's tokenizer, and decoding that never shows half a character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctx_export.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
_REPLACEMENT = "�"  # how tokenizers shows bytes that are no whole character


def has_tokenizer(directory: Path) -> bool:
    """Whether a package or a checkpoint can read text."""
    return (directory / TOKENIZER_NAME).is_file()


class TextCodec:
    """A package's tokenizer.json, and the BOS token where the model wants one."""

    def __init__(self, tokenizer: Tokenizer, bos: int | None) -> None:
        self._tokenizer = tokenizer
        self._bos = bos

    @classmethod
    def load(cls, directory: Path, bos_token_id: int | None) -> TextCodec:
        """Raises UserError where the package has no tokenizer.json or it cannot be read."""
        path = directory / TOKENIZER_NAME
        if not has_tokenizer(directory):
            raise UserError(
                f"{directory} has no tokenizer.json: copy the checkpoint's there, or feed token "
                "ids through open_session"
            )
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{path} cannot be read: {error}") from None
        wanted = _wants_bos(directory)
        return cls(tokenizer, None if wanted is False else bos_token_id)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with one BOS in front where the model has one: the tokenizer's
        own template may put it there already; `add_bos_token: false` leaves it out."""
        ids: list[int] = self._tokenizer.encode(text).ids
        if self._bos is not None and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
        return ids

    def plain(self, text: str) -> list[int]:
        """Token ids of `text` with nothing put in front or behind."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def beginning(self) -> list[int]:
        """What `encode` puts in front of every text: BOS where the model has one."""
        whole, bare = self.encode("."), self.plain(".")
        places = range(len(whole) - len(bare) + 1)
        return next((whole[:at] for at in places if whole[at : at + len(bare)] == bare), [])

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _wants_bos(directory: Path) -> bool | None:
    """What tokenizer_config.json says: `add_bos_token`, else whether it names a BOS token; None
    where there is no such file."""
    try:
        config: Any = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    value = config.get("add_bos_token")
    return value if isinstance(value, bool) else config.get("bos_token") is not None


class TextStream:
    """Turns a growing list of tokens into pieces of text.

    Tokens are decoded together with the few before them, since a decoder may join or space them
    differently alone, and held back while they end within a character.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._context = 0  # tokens from here on are decoded together
        self._shown = 0  # tokens before here have been given out

    def push(self, token: int) -> str:
        """The text that `token` completes, possibly none."""
        self._ids.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """What is still held back, incomplete characters as they are."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        before = self._codec.decode(self._ids[self._context : self._shown])
        text = self._codec.decode(self._ids[self._context :])
        if len(text) <= len(before) or (text.endswith(_REPLACEMENT) and not final):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return text[len(before) :]
