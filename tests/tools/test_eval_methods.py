"""The evaluation of methods and landmark's benchmark: prompts, records and counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.rules import Landmark
from tools.bench.landmark import _rows
from tools.bench.perplexity import bos_token
from tools.eval.methods import DEPTHS, Row, _Record, _windows
from tools.eval.pass_keys import is_found, questions, tokenizer


def test_a_question_has_its_length_and_tells_its_key_once_at_its_depth():
    asked = questions(400, (0.0, 0.5, 1.0), 2)
    assert [question.depth for question in asked] == [0.0, 0.5, 1.0] * 2
    codec = tokenizer()
    keys = set()
    for question in asked:
        assert len(question.prompt) == 400 and question.prompt[0] == bos_token()
        key = codec.decode(question.answer.tolist()).strip()
        keys.add(key)
        text = codec.decode(question.prompt.tolist())
        told = f"The pass key is {key}. Remember it. {key} is the pass key."
        assert text.count(told) == 1 and len(key) == 5
        assert text.endswith("What is the pass key? The pass key is")
        before = len(codec.encode(text[: text.index(told)], add_special_tokens=False).ids)
        assert before == pytest.approx(question.depth * 348, abs=20)
    assert len(keys) == 2
    again = questions(400, (0.0, 0.5, 1.0), 2)
    assert all((a.prompt == b.prompt).all() for a, b in zip(asked, again, strict=True))


class Knowing:
    """A session that predicts what it was made with."""

    def __init__(self, answer: list[int]) -> None:
        self.answer, self.place = answer, 0

    def reset(self) -> None:
        self.place = 0

    def feed(self, tokens: np.ndarray, logits: str = "all") -> np.ndarray:
        count = 1 if logits == "last" else len(tokens)
        rows = np.zeros((count, 2048), np.float32)
        rows[np.arange(count), self.answer[self.place : self.place + count]] = 1
        self.place += count
        return rows if logits == "last" else rows[None]


def test_a_key_is_found_if_every_token_of_it_is():
    question = questions(200, (0.5,), 1)[0]
    answer = question.answer.tolist()
    assert is_found(Knowing(answer), question)
    for wrong in range(len(answer)):
        other = [*answer]
        other[wrong] += 1
        assert not is_found(Knowing(other), question)


def test_windows_begin_with_bos_and_do_not_meet():
    windows = _windows(500, 4)
    assert all(len(window) == 500 and window[0] == bos_token() for window in windows)
    assert len({tuple(window[1:20]) for window in windows}) == 4


def test_rows_are_measured_once(tmp_path):
    file = tmp_path / "rows.json"
    row = Row(
        method="yarn",
        length=512,
        options={"method": "yarn", "target": 512, "max_chunk": 256},
        keys=2,
        found=(2, 1, 0, 0, 1),
        perplexity=5.0,
        perplexity_error=0.5,
    )
    assert len(row.found) == len(DEPTHS)
    head = {"machine": {}, "setting": {"keys": 2}}
    _Record(file, head).add(row)
    assert _Record(file, head).find("yarn", 512) == row
    assert _Record(file, head).find("yarn", 1024) is None
    assert _Record(file, {**head, "setting": {"keys": 3}}).find("yarn", 512) is None
    other = replace(row, options={**row.options, "factor": 3})
    _Record(tmp_path / "other.json", head).add(other)
    assert _Record(tmp_path / "other.json", head).find("yarn", 512) is None


def test_rows_of_keys_and_values_that_a_token_reads():
    full = CacheInfo(policy="full", sinks=0, window=0, capacity=200, keys="rotated")
    assert _rows(full, 99, heads=4, kv_heads=2) == 2 * 2 * 100
    # 100 tokens, 4 sinks, window 10: blocks of 8 end at tokens 11 … 83, 10 of them; the last one
    # that ends at 89 or before is the one to 83. After them come 84 … 99.
    rule = Landmark(block=8, topk=3, shared=False, token=None)
    landmark = replace(full, rule="landmark", sinks=4, window=10, parameters=rule)
    assert _rows(landmark, 99, heads=4, kv_heads=2) == 2 * 10 + 2 * (2 * (4 + 16) + 4 * 3 * 8)
    shared = replace(landmark, parameters=replace(rule, shared=True))
    assert _rows(shared, 99, heads=4, kv_heads=2) == 2 * 10 + 2 * (2 * (4 + 16) + 2 * 3 * 8)
