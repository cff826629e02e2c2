"""Text generation over a session, one sequence at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.runtime.errors import ContextLimitError
from ctx_export.runtime.sampling import Sampler, Sampling
from ctx_export.runtime.session import Session
from ctx_export.runtime.text import TextCodec, TextStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to generate. `stop`: texts that end the output, not part of it. `planned_length`: the
    rope length of length-dependent methods (default: prompt + max_new_tokens, within the
    package's maximum)."""

    prompt: str
    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    planned_length: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max-new-tokens is {self.max_new_tokens}: give at least 1")


@dataclass(slots=True, kw_only=True)
class Figures:
    """What a generation did; `finish` is eos, stop, length or context."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    tokens_per_second: float | None = None  # decoded after the first; None below two tokens
    cache_bytes: int = 0
    finish: str = "length"
    text: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Generation:
    """Iterate over it to get the text in pieces as it is made; `figures` is complete afterwards.

    Raises ContextLimitError where the prompt alone passes the package's maximum context.
    """

    def __init__(self, session: Session, codec: TextCodec, request: Request) -> None:
        self.figures = Figures()
        self._session = session
        self._codec = codec
        self._request = request

    def __iter__(self) -> Iterator[str]:
        held = StopText(self._request.stop)
        for piece in self._pieces():
            text = held.push(piece)
            self.figures.text += text
            if text:
                yield text
            if held.stopped:
                self.figures.finish = "stop"
                break
        else:
            text = held.flush()
            self.figures.text += text
            if text:
                yield text
        self.figures.cache_bytes = self._session.cache_bytes

    def _pieces(self) -> Iterator[str]:
        stream = TextStream(self._codec)
        for token in self._tokens():
            piece = stream.push(token)
            if piece:
                yield piece
        if rest := stream.flush():
            yield rest

    def _tokens(self) -> Iterator[int]:
        session, request, figures = self._session, self._request, self.figures
        ids = self._prompt_ids()
        ends = set(session.manifest.model.get("eos_token_ids") or ())
        sampler = Sampler(request.sampling)
        planned = self._planned(len(ids))
        started = time.perf_counter()
        logits = session.feed([ids], planned, logits="last")[0]
        figures.prefill_seconds = time.perf_counter() - started
        started = time.perf_counter()
        while True:
            token = sampler.choose(np.asarray(logits))
            if token in ends:
                figures.finish = "eos"
                return
            figures.new_tokens += 1
            yield token
            if figures.new_tokens == request.max_new_tokens:
                return
            try:
                logits = session.feed([[token]], planned, logits="last")[0]
            except ContextLimitError:
                figures.finish = "context"
                return
            figures.decode_seconds = time.perf_counter() - started
            figures.tokens_per_second = round(figures.new_tokens / figures.decode_seconds, 3)

    def _prompt_ids(self) -> list[int]:
        ids = self._codec.encode(self._request.prompt)
        if not ids:
            raise UserError("the prompt has no tokens: give some text")
        contract = self._session.contract
        if contract.max_context is not None and len(ids) > contract.max_context:
            raise ContextLimitError(
                f"the prompt has {len(ids)} tokens, the package's maximum context is "
                f"{contract.max_context}: shorten it, or export with a larger --target"
            )
        self.figures.prompt_tokens = len(ids)
        return ids

    def _planned(self, prompt: int) -> int | None:
        """One rope length for the whole request, where the package takes one."""
        contract = self._session.contract
        if contract.rope_length is None:
            return None
        wanted = self._request.planned_length or prompt + self._request.max_new_tokens
        return wanted if contract.max_context is None else min(wanted, contract.max_context)


class StopText:
    """Cuts streamed text before the first of some stop texts, which may span pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is certain not to be part of a stop text."""
        self._held += piece
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """Characters at the end of the held text that begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


def generate(session: Session, directory: Path, request: Request) -> Generation:
    """Generate with the tokenizer of the package in `directory`; row 0 of the session is used."""
    if session.batch != 1:
        raise UserError(f"the session has {session.batch} sequences: generate takes one")
    codec = TextCodec.load(directory, session.manifest.model.get("bos_token_id"))
    return Generation(session, codec, request)
