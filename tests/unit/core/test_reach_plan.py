"""Plans of the policies that reach behind a window, numbers by hand from FORMULAS section 3."""

from __future__ import annotations

import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo
from ctx_export.core.recipe import Recipe, build_recipe
from ctx_export.core.rope_settings import RopeSettings
from ctx_export.core.rules import DualChunk, Landmark, Memory, SelfExtend
from tests.unit.core.test_cache_plan import bounded, full, planned

SCALED = RopeSettings(method="yarn", theta=1e4, original_context=64, parameters={"factor": 4.0})


def reaching(rule: str, parameters: object, capacity: int, **rest: int) -> CacheInfo:
    return CacheInfo(
        policy="bounded" if rule == "memory" else "full",
        rule=rule,
        keys="unrotated",
        capacity=capacity,
        parameters=parameters,
        **{"sinks": 0, "window": 0, **rest},
    )


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # 4 + 16 + w + 16 - 2 < 256; slots 4 + (16 + ⌈8/16⌉) + (221 + 15 + 7)
        (
            {"method": "memory", "max_chunk": 8},
            reaching(
                "memory", Memory(memory=16, block=16, memory_slots=17), 264, sinks=4, window=221
            ),
        ),
        # A block of one token: 2 + 3 + w + 1 - 2 < 64 with T = 64 positions.
        (
            {"memory_tokens": 3, "memory_block": 1, "sinks": 2, "window": 59, "max_chunk": 5},
            reaching(
                "memory", Memory(memory=3, block=1, memory_slots=8), 2 + 8 + 63, sinks=2, window=59
            ),
        ),
        # 4 + (16 + 2)·8 + w - 1 = 256; slots 4 + ⌈1020/8⌉·9
        (
            {"method": "landmark", "target": 1024},
            reaching(
                "landmark",
                Landmark(block=8, topk=16, shared=False, token=None),
                1156,
                sinks=4,
                window=109,
            ),
        ),
        # 64·4 known positions: 2 + 3·7 + w - 1 ≤ 256
        (
            {
                "landmark_block": 7,
                "landmark_topk": 1,
                "landmark_shared": True,
                "sinks": 2,
                "target": 1000,
                "window": 100,
            },
            reaching(
                "landmark",
                Landmark(block=7, topk=1, shared=True, token=None),
                2 + 143 * 8,
                sinks=2,
                window=100,
            ),
        ),
        # 1000 tokens and a landmark after every 15 of them, no slot for means.
        (
            {"landmark_token": 99, "landmark_block": 16, "target": 1000},
            reaching(
                "landmark",
                Landmark(block=16, topk=8, shared=False, token=99),
                1000 + 66,
                window=97,
            ),
        ),
        # (256 - 64)·G + 64 ≥ 1024: 5 would do and must divide 64.
        (
            {"method": "self-extend", "target": 1024},
            reaching("self-extend", SelfExtend(group=8, neighbor=64), 1024),
        ),
        (
            {"group": 6, "target": 1024},
            reaching("self-extend", SelfExtend(group=6, neighbor=60), 1024),
        ),
        (
            {"method": "dual-chunk", "target": 1024},
            reaching("dual-chunk", DualChunk(chunk=192, reach=256), 1024),
        ),
        (
            {"method": "yarn", "factor": 4, "chunk": 100, "target": 4096},
            reaching("dual-chunk", DualChunk(chunk=100, reach=1024), 4096),
        ),
    ],
)
def test_slots_and_parameters(recipe, expected):
    plan = planned(**recipe)
    assert plan.caches == (expected, expected)
    assert plan.max_context == (recipe["target"] if expected.policy == "full" else None)
    assert CacheInfo.from_json(plan.to_json()["layers"][0]) == expected


def test_positions_of_a_scaled_checkpoint_are_all_known():
    """64 trained tokens and factor 4: as many as max_position_embeddings, 256."""
    plan = planned(method="landmark", target=1024, rope=SCALED)
    assert (plan.method, plan.factor, plan.caches[0].window) == ("yarn", 4.0, 109)


def test_positions_are_those_that_a_factor_scales_to():
    assert planned(method="yarn", factor=2, cache="landmark", target=4096).caches[0].window == (
        512 + 1 - 4 - (32 + 2) * 8
    )


def test_layers_with_a_window_of_their_own_keep_it():
    caches = planned(0, 40, method="memory", max_chunk=8).caches
    assert caches[0].rule == "memory"
    assert caches[1] == bounded(0, 40, 47, "sliding-window")
    caches = planned(0, 40, 1150, method="landmark", target=1024, max_chunk=8).caches
    assert caches[0].rule == "landmark"
    assert caches[1] == bounded(0, 40, 47, "sliding-window")
    # One number of slots is given for all caches that grow.
    assert caches[2] == full(caches[0].capacity, window=1150)


def test_a_window_as_long_as_the_positions_stays_a_ring_beside_memory():
    assert planned(0, 256, method="memory", max_chunk=8).max_context is None


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"method": "landmark"}, "keeps every token up to the target and there is none: give"),
        ({"method": "memory", "window": 222}, "within 256 positions.*give --window 221 or less"),
        ({"method": "memory", "window": 0}, "window is 0: memory needs"),
        ({"method": "memory", "memory_tokens": 300}, "give fewer --memory-tokens"),
        (
            {"method": "landmark", "target": 1024, "window": 110},
            "window of 110 within 256 positions.*give --window 109 or less",
        ),
        ({"landmark_topk": 40, "target": 1024}, "give a smaller --landmark-topk or block"),
        ({"landmark_token": 100, "target": 1024}, "the vocabulary has 100 tokens"),
        ({"landmark_token": 9, "landmark_block": 1, "target": 1024}, "--landmark-block 2 or more"),
        # (256 - 64)·4 + 64 = 832; 5 groups need a neighbor that 5 divides.
        (
            {"group": 4, "target": 1024},
            r"reaches 832 tokens.* give --group 5 --neighbor 60, or --target 832",
        ),
        ({"group": 4, "neighbor": 30, "target": 512}, "multiple of group below 256"),
        ({"group": 4, "neighbor": 256, "target": 512}, "multiple of group below 256"),
        ({"chunk": 257, "target": 1024}, "give --chunk 256 or less"),
        ({"chunk": 100, "method": "yarn", "target": 1024}, "give --factor, such as --factor 4"),
        (
            {"chunk": 100, "method": "dynamic-ntk", "factor": 2, "target": 1024},
            "dual-chunk works with one table: choose another method",
        ),
        ({"chunk": 100, "target": 1024, "kv_cache_dtype": "int8"}, "caches of the precision's"),
        ({"chunk": 100, "target": 128}, "target 128 is below the original context"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(recipe, message):
    with pytest.raises(UserError, match=message):
        planned(**recipe)


def test_a_model_of_windows_alone_is_refused():
    with pytest.raises(UserError, match="every layer of the model has a window of its own"):
        planned(40, 40, method="landmark", target=1024)


def test_the_fix_of_a_reach_works():
    planned(group=5, neighbor=60, target=1024)
    planned(group=4, target=832)


def test_a_recipe_file_names_policy_and_options(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("method: yarn\nfactor: 4\ncache: landmark\nlandmark_topk: 2\ntarget: 4k\n")
    assert build_recipe({}, file=file) == Recipe(
        method="yarn", factor=4.0, cache="landmark", landmark_topk=2, target=4096
    )
    assert build_recipe({"landmark_topk": 3}).cache == "landmark"
    assert Recipe(method="landmark").method is None


def test_without_scaling_memory_keeps_what_was_trained_however_far_the_target_is():
    """Its positions end at the trained 256 unless a method stretches them."""
    plain = planned(method="memory", target=4096, max_chunk=8).caches
    assert plain == planned(method="memory", max_chunk=8).caches
    scaled = planned(method="yarn", cache="memory", target=1024, max_chunk=8).caches
    assert scaled[0].window > 3 * plain[0].window


def test_a_config_s_own_scaled_length_counts_more_than_its_factor():
    """As of Llama 3.2, whose factor of 32 over 8192 is not the 131072 it was trained on."""
    own = RopeSettings(method="llama3", theta=1e4, original_context=64, parameters={
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    })  # fmt: skip
    caches = planned(rope=own, cache="dual-chunk", target=4096).caches
    assert caches[0].parameters.reach == 256  # max_position_embeddings
    stretched = planned(rope=own, cache="dual-chunk", target=4096, factor=16.0).caches
    assert stretched[0].parameters.reach == 1024
