"""What fits: verified at the edge, one token and one sequence more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctx_export.core.plan import make_plan
from ctx_export.core.recipe import Recipe
from ctx_export.planning import plan_report
from ctx_export.planning.devices import Budget
from ctx_export.planning.fit import Fit
from ctx_export.planning.kv_cache import kv_cache
from ctx_export.planning.memory import Memory, memory
from ctx_export.planning.methods import Question
from ctx_export.planning.report import Report
from tests.unit.planning.configs import GEMMA3_1B, LLAMA2_70B, write

GIB = 1 << 30
SMALL = {
    **LLAMA2_70B,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


def report(
    path: Path,
    size: int,
    *,
    config: dict[str, Any] = SMALL,
    reserve: float = 0.0,
    methods: tuple[str, ...] = (),
    **given: Any,
) -> Report:
    budget = Budget(name="test", memory_bytes=size)
    question = Question(given={"target": 32768, **given}, methods=methods)
    return plan_report(write(path / "model.json", config), question, (budget,), reserve)


def one(made: Report) -> Fit:
    (figures,) = made.figures
    return figures.fits[0]


def again(made: Report, method: str, target: int, **given: Any) -> Memory:
    """Memory of another target, by a plan made anew."""
    plan = make_plan(made.source.spec, Recipe(method=method, target=target, **given))
    return memory(plan, made.source.parameters, made.weights, plan.max_batch)


@pytest.mark.parametrize("config", [SMALL, GEMMA3_1B], ids=["small", "gemma 3"])
@pytest.mark.parametrize("size", [3 * GIB, 10 * GIB, 33333333333])
@pytest.mark.parametrize("method", ["yarn", "landmark", "dual-chunk", "none"])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_token_more_does_not_fit(
    tmp_path: Path, config: dict[str, Any], method: str, size: int, batch: int
) -> None:
    made = report(tmp_path, size, config=config, methods=(method,), max_batch=batch)
    context = one(made).context
    assert context is not None and context > 32768
    assert again(made, method, context, max_batch=batch).needed <= size
    assert again(made, method, context + 1, max_batch=batch).needed > size
    assert one(made).context_limit == "memory"


def test_a_context_below_the_target_is_found_too(tmp_path: Path) -> None:
    made = report(tmp_path, GIB // 4, methods=("yarn",), target=1 << 24)
    found = one(made)
    assert not found.fits
    assert found.context is not None and 4096 < found.context < 1 << 24
    assert again(made, "yarn", found.context).needed <= GIB // 4
    assert again(made, "yarn", found.context + 1).needed > GIB // 4


@pytest.mark.parametrize("method", ["yarn", "landmark", "streaming"])
def test_one_sequence_more_does_not_fit(tmp_path: Path, method: str) -> None:
    made = report(tmp_path, 10 * GIB, methods=(method,))
    batch = one(made).batch
    assert batch > 1
    for count, fits in ((batch, True), (batch + 1, False)):
        assert (again(made, method, 32768, max_batch=count).needed <= 10 * GIB) == fits


def test_fixed_caches_take_any_context_or_none(tmp_path: Path) -> None:
    assert one(report(tmp_path, GIB, methods=("streaming",))).context is None
    found = one(report(tmp_path, GIB // 100, methods=("streaming",)))
    assert (found.context, found.batch, found.fits) == (0, 0, False)


def test_nothing_fits_where_the_weights_do_not(tmp_path: Path) -> None:
    found = one(report(tmp_path, GIB, config=LLAMA2_70B, methods=("yarn",)))
    assert (found.context, found.batch, found.fits) == (0, 0, False)


def test_a_context_ends_where_the_method_refuses(tmp_path: Path) -> None:
    """self-extend: 4096 positions, of which 1024 are near ones: (4096 − 1024) · 1024 + 1024."""
    found = one(report(tmp_path, 1000 * GIB, methods=("self-extend",), neighbor=1024))
    assert found.context == 3072 * 1024 + 1024
    assert "less than the target" in found.context_limit


def test_a_context_ends_where_the_kernels_do(tmp_path: Path) -> None:
    """2^37 elements in a cache tensor: 2 KV heads of 64."""
    found = one(report(tmp_path, 1 << 50, methods=("none",)))
    assert found.context == 1 << 30
    assert found.context_limit == "the kernels take no larger caches"


def test_the_reserve_stays_free(tmp_path: Path) -> None:
    made = report(tmp_path, 10 * GIB, reserve=0.25, methods=("yarn",))
    context = one(made).context
    assert one(made).usable == 15 * GIB // 2
    assert context is not None
    assert again(made, "yarn", context).needed <= 15 * GIB // 2
    assert again(made, "yarn", context + 1).needed > 15 * GIB // 2


def test_what_is_needed_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    made = report(tmp_path, GIB, methods=("yarn",), max_batch=3)
    (figures,) = made.figures
    found = figures.memory
    assert found.exact == found.weights + found.caches + 2 * found.workspace
    tensor = 3 * 2 * 64 * 32768 * 2  # keys of one layer, which exist twice while they grow
    assert found.growing == tensor
    assert found.needed == found.exact + 2 * found.activations + tensor
    # Stream and its norm, gate, up and their product of 1024 tokens; logits of one row.
    assert found.activations == 3 * 2 * (1024 * (2 * 512 + 3 * 1024) + 32000)
    assert found.weights == made.weights.bytes == 2 * made.source.parameters.total
    assert one(made).needed == found.needed


def test_memory_of_many_sequences_is_that_of_a_plan_for_them(tmp_path: Path) -> None:
    made = report(tmp_path, GIB, methods=("landmark",))
    plan = made.figures[0].plan
    larger = replace(plan, max_batch=5)
    counted = memory(plan, made.source.parameters, made.weights, 5)
    assert counted == memory(larger, made.source.parameters, made.weights, 5)
    assert counted.caches == 5 * kv_cache(plan).sequence_bytes
