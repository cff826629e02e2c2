"""Bytes of caches against FORMULAS section 4, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctx_export.planning import plan_report
from ctx_export.planning.methods import Question
from ctx_export.planning.report import Figures
from tests.unit.planning.configs import GEMMA3_1B, LLAMA2_70B, write

K = 1024


def figures(path: Path, config: dict[str, Any], method: str, **given: Any) -> Figures:
    question = Question(given={"target": 128 * K, **given}, methods=(method,))
    (found,) = plan_report(write(path / "model.json", config), question).figures
    return found


def test_llama_2_70b_at_128k_is_what_the_formula_says(tmp_path: Path) -> None:
    found = figures(tmp_path, LLAMA2_70B, "yarn")
    assert found.kv.sequence_bytes == 2 * 80 * 8 * 128 * 131072 * 2 == 42949672960
    assert found.kv.token_bytes == 2 * 80 * 8 * 128 * 2
    assert found.memory.caches == 42949672960


def test_a_batch_has_as_many(tmp_path: Path) -> None:
    found = figures(tmp_path, LLAMA2_70B, "yarn", max_batch=3)
    assert found.memory.sequence == 42949672960
    assert found.memory.caches == 3 * 42949672960


def test_quantised_elements_have_one_byte(tmp_path: Path) -> None:
    for name, dtype in (("fp8", "float8e4m3fn"), ("int8", "int8")):
        found = figures(tmp_path, LLAMA2_70B, "yarn", kv_cache_dtype=name)
        assert found.kv.sequence_bytes == 42949672960 // 2
        assert found.kv.dtype == dtype


def test_a_ring_has_its_slots_and_grows_by_nothing(tmp_path: Path) -> None:
    found = figures(tmp_path, LLAMA2_70B, "streaming", sinks=4, window=1020, max_chunk=256)
    assert found.kv.sequence_bytes == 2 * 80 * 8 * 128 * 2 * (4 + 1020 + 256 - 1)
    assert found.kv.token_bytes == 0
    assert found.kv.largest_growing == 0


def test_landmark_keeps_a_representative_of_every_block(tmp_path: Path) -> None:
    found = figures(tmp_path, LLAMA2_70B, "landmark", sinks=4, landmark_block=50)
    blocks = -(-(128 * K - 4) // 50)
    assert found.kv.sequence_bytes == 2 * 80 * 8 * 128 * 2 * (4 + 51 * blocks)
    assert found.kv.token_bytes * 50 == 51 * 2 * 80 * 8 * 128 * 2


def test_landmark_tokens_take_slots_like_others(tmp_path: Path) -> None:
    options = {"landmark_block": 50, "landmark_token": 7}
    found = figures(tmp_path, LLAMA2_70B, "landmark", **options)
    assert found.kv.sequence_bytes == 2 * 80 * 8 * 128 * 2 * (128 * K + 128 * K // 49)
    assert found.kv.token_bytes * 49 == 50 * 2 * 80 * 8 * 128 * 2


def test_layers_with_windows_of_their_own_are_a_kind_of_their_own(tmp_path: Path) -> None:
    """gemma 3: five layers in six see 512 tokens; one KV head of 256, bfloat16."""
    found = figures(tmp_path, GEMMA3_1B, "none")
    ring, full = found.kv.kinds
    assert (ring.layers, ring.cache.capacity) == (22, 512 + 1024 - 1)
    assert (full.layers, full.cache.capacity) == (4, 128 * K)
    assert (ring.cache.policy, full.cache.policy) == ("bounded", "full")
    assert (ring.cache.rule, full.cache.rule) == ("sliding-window", "causal")
    slot = 2 * 256 * 2
    assert found.kv.sequence_bytes == slot * (22 * 1535 + 4 * 128 * K)
    assert found.kv.token_bytes == slot * 4
    assert found.kv.largest_growing == slot // 2 * 128 * K
