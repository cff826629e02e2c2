"""Every layer's cache in a plan: slots by FORMULAS section 3, refusals with their fix."""

from __future__ import annotations

from typing import Any

import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.recipe import Recipe
from ctx_export.core.rope_settings import RopeSettings

TRAINED = 256


def spec(*windows: int, rope: RopeSettings | None = None) -> ModelSpec:
    return ModelSpec(
        family="llama",
        layers=len(windows),
        heads=4,
        kv_heads=2,
        head_dim=64,
        vocab=100,
        hidden=256,
        max_position_embeddings=TRAINED,
        precision="fp16",
        rope=rope or RopeSettings(method="none", theta=10000.0),
        windows=windows,
    )


def planned(*windows: int, rope: RopeSettings | None = None, **recipe: Any) -> Plan:
    return make_plan(spec(*(windows or (0, 0)), rope=rope), Recipe(**recipe))


def bounded(sinks: int, window: int, capacity: int, rule: str, sink_position: int | None = None):
    return CacheInfo(
        policy="bounded",
        rule=rule,
        sinks=sinks,
        window=window,
        capacity=capacity,
        keys="rotated",
        sink_position=sink_position,
    )


def full(capacity: int, window: int = 0, keys: str = "rotated") -> CacheInfo:
    rule = "sliding-window" if window else "causal"
    return CacheInfo(
        policy="full", rule=rule, sinks=0, window=window, capacity=capacity, keys=keys
    )


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # C = sinks + window + max_chunk - 1; by default sinks + window is the trained context.
        ({"method": "streaming", "max_chunk": 8}, bounded(4, 252, 263, "streaming", 255)),
        ({"method": "streaming"}, bounded(4, 252, 511, "streaming", 255)),  # a chunk of 256
        (
            {"method": "streaming", "sinks": 0, "window": 17, "max_chunk": 1},
            bounded(0, 17, 17, "streaming"),
        ),
        (
            {"method": "yarn", "sinks": 4, "window": 1020, "max_chunk": 64},
            bounded(4, 1020, 1087, "streaming", 1023),
        ),
        ({"method": "ntk", "window": 512, "max_chunk": 1}, bounded(0, 512, 512, "sliding-window")),
        ({"method": "sliding-window", "max_chunk": 5}, bounded(0, 256, 260, "sliding-window")),
        (
            {"method": "lm-infinite", "window": 256, "sinks": 10, "max_chunk": 1},
            bounded(10, 256, 266, "lm-infinite", 255),
        ),
        ({"method": "yarn", "target": 1024}, full(1024)),
        ({"method": "yarn", "target": 1024, "window": 0}, full(1024)),
        ({"method": "dynamic-ntk", "target": 1024}, full(1024, keys="unrotated")),
    ],
)
def test_slots_of_a_recipe(recipe, expected):
    plan = planned(**recipe)
    assert plan.caches == (expected, expected)
    assert plan.max_context == (1024 if expected.policy == "full" else None)
    # 2 layers · 2 (key, value) · 2 KV heads · 64 · 2 bytes of a slot
    assert plan.cache_bytes == 2 * 2 * 2 * 64 * 2 * expected.capacity


@pytest.mark.parametrize(
    ("kind", "dtype", "size"),
    [("auto", "float16", 2), ("fp8", "float8e4m3fn", 1), ("int8", "int8", 1)],
)
def test_bytes_and_tensors_have_the_type_of_the_cache(kind, dtype, size):
    """2 · layers · KV heads · head_dim · C · bytes (FORMULAS section 4)."""
    plan = planned(method="yarn", target=1024, kv_cache_dtype=kind)
    assert plan.cache_bytes == 2 * 2 * 2 * 64 * 1024 * size
    caches = {tensor.dtype for tensor in plan.io if tensor.layer >= 0}
    assert (caches, plan.to_json()["kv_cache_dtype"]) == ({dtype}, dtype)
    assert {t.dtype for t in plan.io if t.role == "logits"} == {"float16"}
    assert f"rotated keys, {dtype}, {plan.cache_bytes} bytes per sequence" in plan.describe()
    assert plan.kv_cache_json() is None  # scales come with calibration


def test_a_scaled_table_over_a_window_is_made_for_what_it_sees():
    assert planned(method="yarn", sinks=4, window=1020).factor == 4.0
    assert planned(method="yarn", sinks=4, window=1020, target=2048).factor == 8.0


def test_a_policy_keeps_the_checkpoint_s_own_scaling():
    rope = RopeSettings(method="yarn", theta=1e4, original_context=64, parameters={"factor": 4.0})
    plan = planned(rope=rope, method="streaming", window=100)
    assert (plan.method, plan.factor) == ("yarn", 4.0)


def test_every_layer_keeps_its_own_window_and_a_policy_narrows_it():
    own = planned(0, 40, 100, target=512, max_chunk=8)
    assert own.caches == (
        full(512),
        bounded(0, 40, 47, "sliding-window"),
        bounded(0, 100, 107, "sliding-window"),
    )
    assert own.max_context == 512
    narrowed = planned(0, 40, 100, sinks=2, window=60, max_chunk=8)
    assert narrowed.caches == (
        bounded(2, 60, 69, "streaming", 61),
        bounded(2, 40, 49, "streaming", 41),
        bounded(2, 60, 69, "streaming", 61),
    )
    assert narrowed.max_context is None


def test_a_window_no_smaller_than_the_context_needs_no_ring():
    assert planned(300, target=300, max_chunk=8).caches == (full(300, window=300),)


def test_layers_that_are_all_rings_have_no_maximum():
    assert planned(40, 40, target=512, max_chunk=8).max_context is None


def test_length_dependent_frequencies_keep_own_windows_in_full_caches():
    plan = planned(40, method="dynamic-ntk", target=512, max_chunk=8)
    assert plan.caches == (full(512, window=40, keys="unrotated"),)


def test_longrope_over_a_window_has_both_lists_whatever_the_window():
    rope = RopeSettings(
        method="longrope",
        theta=1e4,
        original_context=TRAINED,
        parameters={"short_factor": (1.0,) * 32, "long_factor": (2.0,) * 32},
    )
    plan = planned(rope=rope, method="streaming", window=60, max_chunk=8)
    assert plan.length_table is not None and plan.caches[0].keys == "unrotated"
    assert plan.length_table.threshold == TRAINED


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"method": "yarn", "target": 1024, "sinks": 4}, ["sinks is 4", "--window 252"]),
        (
            {"method": "yarn", "target": 1024, "sinks": 4, "window": 1024},
            ["1028 tokens", "target of 1024", "--window 1020", "--target of at least 1028"],
        ),
        ({"method": "streaming", "sinks": 256}, ["256 sinks", "--window"]),
        ({"method": "streaming", "window": 0}, ["needs a window", "--window"]),
        ({"method": "sliding-window", "sinks": 4}, ["no sinks", "--method streaming"]),
        ({"method": "lm-infinite", "window": 300}, ["window 300", "--window 256"]),
        (
            {"method": "dynamic-ntk", "target": 1024, "window": 64},
            ["dynamic-ntk", "bounded cache", "leave --sinks and --window out"],
        ),
        ({"method": "dynamic-yarn", "target": 1024, "sinks": 1, "window": 9}, ["dynamic-yarn"]),
        (
            {"method": "yarn", "target": 1024, "max_chunk": 2048},
            ["max_chunk is 2048", "--max-chunk 1024"],
        ),
    ],
)
def test_bounds_that_do_not_fit_are_refused_with_the_fix(recipe, words):
    with pytest.raises(UserError) as caught:
        planned(**recipe)
    for word in words:
        assert word in str(caught.value)
