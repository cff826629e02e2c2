"""Operations and bytes, worked out by hand from FORMULAS section 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctx_export.planning import plan_report
from ctx_export.planning.methods import Question
from ctx_export.planning.report import Figures, Report
from tests.unit.planning.configs import GEMMA3_1B, LLAMA2_70B, MIXTRAL, write

N = 131072
MATRICES = 80 * (8192 * (8192 + 2 * 1024) + 8192 * 8192 + 3 * 8192 * 28672)
OUTPUT = 32000 * 8192
SLOT = 80 * 2 * 8 * 128 * 2  # bytes of a token's keys and values in all layers


def report(path: Path, config: dict[str, Any], method: str, **given: Any) -> Report:
    question = Question(given={"target": N, **given}, methods=(method,))
    return plan_report(write(path / "model.json", config), question)


def of_70b(path: Path, method: str, **given: Any) -> Figures:
    return report(path, LLAMA2_70B, method, **given).figures[0]


def test_a_full_prefill(tmp_path: Path) -> None:
    found = of_70b(tmp_path, "yarn").prefill
    pairs = N * (N + 1) // 2
    assert found.pairs == 80 * pairs
    assert found.operations.matrices == 2 * (MATRICES * N + OUTPUT)
    assert found.operations.attention == 80 * 4 * 128 * 64 * pairs
    assert found.calls == N // 1024
    # Each call reads the weights but the embeddings, and the tokens so far; tokens are written.
    parameters = MATRICES + OUTPUT + 80 * 2 * 8192 + 8192
    assert found.weight_bytes == N // 1024 * 2 * parameters
    reads = sum(range(1024, N + 1, 1024))
    assert found.cache_bytes == SLOT * (reads + N)


def test_the_last_call_may_be_a_part(tmp_path: Path) -> None:
    found = of_70b(tmp_path, "yarn", max_chunk=1000).prefill
    assert found.calls == 132
    reads = sum(range(1000, N + 1, 1000)) + N
    assert found.cache_bytes == SLOT * (reads + N)


def test_a_full_decode(tmp_path: Path) -> None:
    found = of_70b(tmp_path, "yarn", max_batch=3).decode
    assert found.operations.matrices == 3 * 2 * (MATRICES + OUTPUT)
    assert found.operations.attention == 3 * 80 * 4 * 128 * 64 * N
    assert found.cache_bytes == found.most_cache_bytes == 3 * SLOT * N
    assert found.weight_bytes == 2 * (MATRICES + OUTPUT + 80 * 2 * 8192 + 8192)
    assert found.bytes == found.weight_bytes + found.cache_bytes


def test_a_window_with_sinks(tmp_path: Path) -> None:
    """FORMULAS section 4: P = W(W+1)/2 + (N−W)·W + S(N−W) − S(S−1)/2."""
    found = of_70b(tmp_path, "streaming", sinks=4, window=1020)
    s, w = 4, 1020
    pairs = w * (w + 1) // 2 + (N - w) * w + s * (N - w) - s * (s - 1) // 2
    assert found.prefill.pairs == 80 * pairs
    assert found.decode.cache_bytes == SLOT * (s + w)
    assert found.prefill.cache_bytes == SLOT * (N // 1024 * (s + w) + N)


def test_memory_reads_sinks_averages_and_what_is_not_averaged(tmp_path: Path) -> None:
    options = {"sinks": 4, "window": 1000, "memory_tokens": 100, "memory_block": 16}
    found = of_70b(tmp_path, "memory", **options).decode
    rest = (N - 1004) % 16
    assert found.cache_bytes == SLOT * (4 + 100 + 1000 + rest)


def test_landmark_reads_representatives_and_chosen_blocks(tmp_path: Path) -> None:
    options = {"sinks": 4, "window": 100, "landmark_block": 64, "landmark_topk": 8}
    found = of_70b(tmp_path, "landmark", **options)
    candidates, rest = divmod(N - 104, 64)
    near = 4 + 100 + rest
    # Of representatives the keys alone.
    assert found.decode.cache_bytes == SLOT * (near + 8 * 64) + SLOT // 2 * candidates
    # Eight query heads to a KV head may choose eight blocks each.
    assert found.decode.most_cache_bytes == SLOT * (near + 64 * 64) + SLOT // 2 * candidates
    width = 128 * 64
    attention = 80 * width * (4 * (near + 8 * 64) + 2 * candidates)
    assert found.decode.operations.attention == attention
    shared = of_70b(tmp_path, "landmark", landmark_shared=True, **options).decode
    assert shared.most_cache_bytes == shared.cache_bytes == found.decode.cache_bytes


@pytest.mark.parametrize("method", ["self-extend", "dual-chunk"])
def test_rules_that_see_every_token_meet_it_once(tmp_path: Path, method: str) -> None:
    full, found = of_70b(tmp_path, "none"), of_70b(tmp_path, method)
    assert found.prefill.pairs == full.prefill.pairs
    assert found.decode.cache_bytes == full.decode.cache_bytes


def test_layers_of_two_kinds_add_up(tmp_path: Path) -> None:
    """gemma 3: 22 layers with a window of 512, 4 that see all; the embeddings are read as output
    projection."""
    made = report(tmp_path, GEMMA3_1B, "none")
    (found,) = made.figures
    window = 512 * 513 // 2 + (N - 512) * 512
    assert found.prefill.pairs == 22 * window + 4 * N * (N + 1) // 2
    assert found.decode.cache_bytes == 2 * 256 * 2 * (22 * 512 + 4 * N)
    assert found.decode.weight_bytes == made.weights.bytes


def test_all_experts_compute_and_are_read(tmp_path: Path) -> None:
    """Mixtral: 8 experts of three 4096 · 14336 matrices in 32 layers, 2 of them chosen."""
    made = report(tmp_path, MIXTRAL, "none")
    (found,) = made.figures
    expert = 3 * 4096 * 14336
    spared = 32 * 6 * expert
    prefill, decode = found.prefill.operations, found.decode
    assert prefill.matrices - prefill.active_matrices == 2 * N * spared
    assert decode.operations.matrices - decode.operations.active_matrices == 2 * spared
    assert decode.weight_bytes - decode.active_weight_bytes == 2 * spared
    attention = 4096 * (4096 + 2 * 1024) + 4096 * 4096
    ratio = (attention + 8 * 4096 + 8 * expert) / (attention + 8 * 4096 + 2 * expert)
    told = f"all experts compute every token, {ratio:.3g} times"
    assert any(told in note for note in made.notes)


def test_quantised_caches_are_read_as_bytes(tmp_path: Path) -> None:
    found = of_70b(tmp_path, "yarn", kv_cache_dtype="int8").decode
    assert found.cache_bytes == SLOT // 2 * N
