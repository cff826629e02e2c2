"""Landmark tokens between those of a text; oracle: a list that they are appended to one by one."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.rules import Landmark, Memory
from ctx_export.runtime.landmarks import LandmarkTokens

MARK = 99


def listed(text: int, block: int, sinks: int) -> list[int | str]:
    """What the model has had after tokens 0 … text - 1 of a text."""
    fed: list[int | str] = []
    for token in range(text):
        fed.append(token)
        if token >= sinks and (token - sinks + 1) % (block - 1) == 0:
            fed.append("mark")
    return fed


@pytest.mark.parametrize("block", [2, 3, 7, 16])
@pytest.mark.parametrize("sinks", [0, 4])
def test_lengths_there_and_back(block, sinks):
    tokens = LandmarkTokens(token=MARK, block=block, sinks=sinks)
    texts = np.arange(200)
    expected = [len(listed(text, block, sinks)) for text in texts]
    assert tokens.fed(texts).tolist() == expected
    assert tokens.text(np.array(expected)).tolist() == texts.tolist()


@pytest.mark.parametrize("block", [2, 3, 7])
@pytest.mark.parametrize("sinks", [0, 4])
def test_any_split_feeds_the_same_and_names_the_rows_of_the_logits(block, sinks):
    tokens = LandmarkTokens(token=MARK, block=block, sinks=sinks)
    generator = np.random.default_rng(0)
    seen, whole = np.zeros(3, np.int64), [[], [], []]
    for width in (5, 1, 16, 3, 1, 9):
        counts = generator.integers(0, width + 1, 3)
        ids = seen[:, None] + np.arange(width)  # a token's id is its place in the text
        wide, fed, rows = tokens.spread(ids, counts, seen)
        for row in range(3):
            before = len(whole[row])
            whole[row] += wide[row, : fed[row]].tolist()
            for column in range(counts[row]):
                # The last thing fed before the next token of the text would be.
                last = before + rows[row, column]
                assert last + 1 == len(listed(int(seen[row]) + column + 1, block, sinks))
        seen = seen + counts
    for row in range(3):
        told = [MARK if entry == "mark" else entry for entry in listed(seen[row], block, sinks)]
        assert whole[row] == told


def test_a_package_says_which_token():
    common = {"policy": "full", "sinks": 2, "window": 9, "capacity": 600, "keys": "unrotated"}
    rule = Landmark(block=5, topk=1, shared=False, token=MARK)
    trained = CacheInfo(rule="landmark", parameters=rule, **common)
    means = CacheInfo(
        rule="landmark", parameters=Landmark(block=5, topk=1, shared=False, token=None), **common
    )
    memory = CacheInfo(
        rule="memory", parameters=Memory(memory=1, block=5, memory_slots=2), **common
    )
    found = LandmarkTokens.of([memory, trained])
    assert found == LandmarkTokens(token=MARK, block=5, sinks=2)
    assert LandmarkTokens.of([means, memory]) is None
