"""Generation over a model that counts: after byte b comes byte b + 1. Oracle: the alphabet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo, Manifest
from ctx_export.runtime.backend import Floats, Step
from ctx_export.runtime.contract import Contract
from ctx_export.runtime.errors import ContextLimitError
from ctx_export.runtime.generate import Request, StopText, generate
from ctx_export.runtime.session import Session
from tests.unit.runtime.fakes import FakeBackend, manifest
from tests.unit.runtime.test_text import byte_tokenizer, package

VOCAB = 258
FULL = CacheInfo(policy="full", sinks=0, window=0, capacity=30, keys="rotated")


class CountingBackend(FakeBackend):
    def step(self, step: Step) -> Floats:
        self.steps.append(step)
        logits = np.zeros((1, step.input_ids.shape[1], VOCAB), np.float32)
        for row, token in enumerate(step.input_ids[0]):
            logits[0, row, (token + 1) % VOCAB] = 9
        return np.take_along_axis(logits, step.logit_rows[:, :, None], axis=1)


def stated(eos: str = "", **changes: Any) -> Manifest:
    made = manifest(cache=FULL, max_chunk=8, vocab=VOCAB, **changes)
    ids = [byte_tokenizer().encode(eos).ids[0]] if eos else []
    return replace(made, model={**made.model, "eos_token_ids": ids, "bos_token_id": None})


def make(directory: Path, eos: str = "", **changes: Any) -> tuple[Session, CountingBackend]:
    package(directory, byte_tokenizer())
    model = stated(eos, **changes)
    backend = CountingBackend(batch=1, cache=FULL)
    return Session(model, Contract.from_manifest(model), backend), backend


def test_it_continues_and_counts(tmp_path: Path) -> None:
    session, backend = make(tmp_path)
    generation = generate(session, tmp_path, Request(prompt="abc", max_new_tokens=5))
    assert list(generation) == ["d", "e", "f", "g", "h"]
    figures = generation.figures
    assert (figures.text, figures.finish) == ("defgh", "length")
    assert (figures.prompt_tokens, figures.new_tokens) == (3, 5)
    # The last token needs no call of its own.
    assert [s.input_ids.shape[1] for s in backend.steps] == [3, 1, 1, 1, 1]
    assert figures.cache_bytes == 30 * 4
    assert figures.tokens_per_second is not None and figures.tokens_per_second > 0


def test_it_ends_at_eos(tmp_path: Path) -> None:
    session, _ = make(tmp_path, eos="f")
    generation = generate(session, tmp_path, Request(prompt="abc"))
    assert "".join(generation) == "de"
    assert generation.figures.finish == "eos" and generation.figures.new_tokens == 2


def test_it_ends_before_a_stop_text_over_several_tokens(tmp_path: Path) -> None:
    session, _ = make(tmp_path)
    request = Request(prompt="abc", stop=("gh", "xyz"))
    generation = generate(session, tmp_path, request)
    assert "".join(generation) == "def"
    assert generation.figures.finish == "stop"


def test_it_ends_at_the_maximum_context(tmp_path: Path) -> None:
    session, _ = make(tmp_path)
    generation = generate(session, tmp_path, Request(prompt="a" * 26 + "b"))
    # 27 tokens of prompt and three more fill the cache; the fourth needs no slot.
    assert "".join(generation) == "cdef"
    assert generation.figures.finish == "context" and session.seen.tolist() == [30]


def test_a_prompt_beyond_the_maximum_names_both(tmp_path: Path) -> None:
    session, backend = make(tmp_path)
    with pytest.raises(ContextLimitError, match="31 tokens, the package's maximum context is 30"):
        list(generate(session, tmp_path, Request(prompt="a" * 31)))
    assert backend.steps == []
    with pytest.raises(UserError, match="no tokens"):
        list(generate(session, tmp_path, Request(prompt="")))


def test_one_rope_length_serves_the_whole_request(tmp_path: Path) -> None:
    session, backend = make(tmp_path, rope_length=True)
    list(generate(session, tmp_path, Request(prompt="abc", max_new_tokens=3)))
    session.reset()
    list(generate(session, tmp_path, Request(prompt="abc", max_new_tokens=99)))
    session.reset()
    list(generate(session, tmp_path, Request(prompt="ab", max_new_tokens=1, planned_length=9)))
    lengths = [int(s.rope_length[0]) for s in backend.steps if s.rope_length is not None]
    assert set(lengths[:3]) == {6} and set(lengths[3:-1]) == {30} and lengths[-1] == 9


def test_stop_text_holds_back_what_may_become_one() -> None:
    stop = StopText(["<end>", "!!"])
    assert [stop.push(piece) for piece in ("a<", "e", "x!", "b<en")] == ["a", "", "<ex", "!b"]
    assert stop.push("d>rest") == "" and stop.stopped
    rest = StopText(["<end>"])
    assert rest.push("a<en") == "a" and rest.flush() == "<en"
