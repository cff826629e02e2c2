"""Every file of `recipes/`: it loads, plans without the hub, and says what its plan says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from ctx_export.cli.inspect_rows import format_bytes
from ctx_export.core.plan import make_plan
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.checkpoint import model_spec
from tools.docs.recipes_table import DEMO, Shipped, recipe_files, shipped
from tools.recipes.published import MODELS, RECIPES, facts_path

FILES = recipe_files()
PUBLIC = [path for path in FILES if path.parent.name != DEMO]
EDGE = [path for path in PUBLIC if path.parent.name == "edge"]
# Memory of the devices that file names and comments speak of, in GB as their makers count.
DEVICES = {
    "orin-nano-4gb": ("Jetson Orin Nano 4GB", 4),
    "orin-nano-8gb": ("Jetson Orin Nano 8GB", 8),
    "orin-nx-16gb": ("Jetson Orin NX 16GB", 16),
    "agx-orin-64gb": ("Jetson AGX Orin 64GB", 64),
    "rtx-4060-laptop-8gb": ("GeForce RTX 4060 Laptop of 8 GB", 8),
}


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


entry = cache(shipped)


def device(path: Path) -> str:
    return next(device for device in DEVICES if path.stem.startswith(f"{device}-"))


def test_there_are_recipes_for_many_models():
    models = {entry(path).recipe.model for path in PUBLIC}
    assert len(models) >= 24
    assert len(PUBLIC) >= 40
    assert {device(path) for path in EDGE} == set(DEVICES)


def test_many_methods_have_recipes():
    ways = {entry(path).way for path in PUBLIC}
    assert ways >= {
        *("yarn", "dynamic-yarn", "llama3", "longrope", "theta", "linear", "ntk", "dynamic-ntk"),
        *("streaming", "memory", "landmark", "self-extend", "dual-chunk"),
    }


@pytest.mark.parametrize("path", FILES, ids=name)
def test_it_opens_with_its_own_command(path):
    first = path.read_text().splitlines()[0]
    assert first == f"# ctx-export --recipe {path.relative_to(RECIPES.parent).as_posix()}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_lines_fit_the_page(path):
    assert max(map(len, path.read_text().splitlines())) <= 101


@pytest.mark.parametrize("path", PUBLIC, ids=name)
def test_its_name_says_model_method_and_length(path):
    made = entry(path)
    model = made.recipe.model.rpartition("/")[2].lower()
    expected = f"{model}-{made.way}-{made.length}"
    if path in EDGE:
        expected = f"{device(path)}-{expected}"
    assert path.stem == expected


@pytest.mark.parametrize("path", [path for path in FILES if path not in PUBLIC], ids=name)
def test_a_demo_recipe_s_name_says_method_and_length(path):
    made = entry(path)
    endless = made.plan.max_context is None
    assert path.stem == (made.way if endless else f"{made.way}-{made.length}")


@pytest.mark.parametrize("path", PUBLIC, ids=name)
def test_it_names_its_source(path):
    links = entry(path).source.split(" and ")
    assert all(re.fullmatch(r"https://\S+", link) for link in links)


@pytest.mark.parametrize("path", PUBLIC, ids=name)
def test_numbers_of_the_comment_are_the_plan_s(path):
    """Memory and multiplier in the comment; KV cache is always told."""
    made = entry(path)
    comment, plan = made.comment, made.plan
    assert made.facts is not None
    weights = format_bytes(made.facts.weight_bytes(plan.precision))
    told = re.findall(r"([\d.]+ [KMG]iB) of KV cache", comment)
    assert told == [format_bytes(plan.cache_bytes)]
    assert set(re.findall(r"([\d.]+ [KMG]iB) of (?:its )?weights", comment)) <= {weights}
    multiplier = f"{plan.table.multiplier:.4f}"
    assert set(re.findall(r"ultiplier of (\d\.\d+)", comment)) <= {multiplier}


@pytest.mark.parametrize("path", PUBLIC, ids=name)
def test_a_factor_of_the_comment_is_the_plan_s(path):
    plan = entry(path).plan
    for factor, over in re.findall(r"factor (\d+) over (?:the )?(\d+)", entry(path).comment):
        assert float(factor) == plan.factor
        assert int(over) == plan.original_context


def assert_same_tables(made: Shipped, *, checkpoint: Recipe) -> None:
    """The recipe's frequencies are those that the checkpoint's own settings give."""
    own = make_plan(made.plan.spec, checkpoint)
    assert len(made.plan.tables) == len(own.tables)
    for ours, theirs in zip(made.plan.tables, own.tables, strict=True):
        np.testing.assert_array_equal(ours.inv_freq, theirs.inv_freq)
        assert ours.multiplier == theirs.multiplier
    by_length = made.plan.length_table, own.length_table
    ours_then, theirs_then = (None if table is None else table.to_json() for table in by_length)
    assert ours_then == theirs_then


AS_PUBLISHED = [path for path in PUBLIC if "as published" in entry(path).comment]


def test_many_recipes_are_as_published():
    assert len(AS_PUBLISHED) >= 20


@pytest.mark.parametrize("path", AS_PUBLISHED, ids=name)
def test_as_published_is_the_checkpoint_s_own_table(path):
    assert_same_tables(entry(path), checkpoint=Recipe())


@pytest.mark.parametrize("path", AS_PUBLISHED, ids=name)
def test_a_target_shorter_or_longer_than_published_is_told(path):
    """As published goes to the published length, or the comment says that only room differs."""
    made = entry(path)
    published = make_plan(made.plan.spec, Recipe()).max_context
    config = made.facts.config if made.facts is not None else {}
    lengths = {published, config.get("max_sequence_length"), None}
    assert made.plan.max_context in lengths or re.search(r"room for|100000 tokens", made.comment)


FACTORED = [
    path
    for path in PUBLIC
    if entry(path).recipe.method is not None and entry(path).recipe.factor is not None
]


@pytest.mark.parametrize("path", FACTORED, ids=name)
def test_a_factor_reaches_the_target(path):
    """llama3's is smaller than the reach on purpose; the others stretch L to T."""
    made = entry(path)
    if made.plan.method != "llama3":
        assert made.plan.factor * made.plan.original_context == made.recipe.target


@pytest.mark.parametrize("path", PUBLIC, ids=name)
def test_an_original_context_agrees_with_the_facts(path):
    """What a recipe states is what config.json states, or shorter where a comment gives it."""
    made = entry(path)
    stated = made.recipe.original_context
    if stated is None:
        return
    spec = made.plan.spec
    assert stated == spec.original_context or (
        stated < spec.max_position_embeddings and str(stated) in made.comment
    )


@pytest.mark.parametrize(
    "recipe",
    [
        "qwen2.5/qwen2.5-7b-instruct-yarn-128k",
        "qwen2.5/qwen2.5-72b-instruct-yarn-128k",
        "qwen3/qwen3-8b-yarn-128k",
        "qwen3/qwen3-30b-a3b-yarn-128k",
        "edge/agx-orin-64gb-qwen2.5-7b-instruct-yarn-128k",
    ],
)
def test_qwen_s_recipes_are_what_its_settings_in_config_json_would_be(recipe):
    """https://qwen.readthedocs.io/en/latest/inference/transformers.html: what the publisher says
    to add to config.json."""
    made = entry(RECIPES / f"{recipe}.yaml")
    assert made.facts is not None
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    added = {"max_position_embeddings": 131072, "rope_scaling": scaling}
    own = make_plan(model_spec({**made.facts.config, **added}, "bf16"), Recipe())
    np.testing.assert_array_equal(made.plan.table.inv_freq, own.table.inv_freq)
    assert made.plan.table.multiplier == own.table.multiplier
    assert made.plan.max_context == own.max_context == 131072


def test_the_million_token_recipe_has_the_published_chunks():
    path = RECIPES / "qwen2.5" / "qwen2.5-7b-instruct-1m-dual-chunk-1010000.yaml"
    made = entry(path)
    assert made.facts is not None
    published = made.facts.config["dual_chunk_attention_config"]
    assert made.recipe.chunk == published["chunk_size"] - published["local_size"]
    assert made.recipe.original_context == published["original_max_position_embeddings"]
    assert made.recipe.target == made.plan.spec.max_position_embeddings


@pytest.mark.parametrize(
    "path", [path for path in PUBLIC if entry(path).recipe.cache == "dual-chunk"], ids=name
)
def test_chunks_are_three_quarters_of_the_trained_context(path):
    """arXiv 2402.17463, but for the model that publishes its own."""
    made = entry(path)
    assert made.facts is not None
    if "dual_chunk_attention_config" not in made.facts.config:
        assert made.recipe.chunk == made.plan.original_context * 3 // 4


@pytest.mark.parametrize(
    "path", [path for path in PUBLIC if entry(path).recipe.cache == "self-extend"], ids=name
)
def test_groups_follow_the_authors_rule(path):
    """https://github.com/datamllab/LongLM: positions in use below half of the trained ones."""
    made = entry(path)
    recipe = made.recipe
    used = recipe.neighbor + (recipe.target - recipe.neighbor) / recipe.group
    assert used < made.plan.original_context / 2
    assert f"= {used:.0f} positions" in made.comment


def test_landmark_positions_stay_within_the_pretraining():
    path = RECIPES / "llama3" / "llama-3.1-8b-instruct-landmark-128k.yaml"
    made = entry(path)
    recipe = made.recipe
    used = recipe.sinks + (recipe.landmark_topk + 2) * recipe.landmark_block + recipe.window - 1
    assert used == made.plan.original_context == 8192


@pytest.mark.parametrize("path", EDGE, ids=name)
def test_an_edge_recipe_fits_its_device(path):
    """Weights and caches of all sequences, with a tenth of the memory left for everything else."""
    made = entry(path)
    assert made.facts is not None
    spoken, memory = DEVICES[device(path)]
    assert f"For a {spoken}." in made.comment
    caches = made.plan.cache_bytes * made.plan.max_batch
    total = made.facts.weight_bytes(made.plan.precision) + caches
    assert f"are {total / 1e9:.2f} GB of its {memory} GB" in made.comment
    assert total < 0.9 * memory * 1e9


@pytest.mark.parametrize("path", EDGE, ids=name)
def test_an_edge_recipe_builds_for_its_device(path):
    engine = "tensorrt-rtx" if "rtx" in path.stem else "tensorrt"
    assert entry(path).recipe.engine == engine


def test_every_model_s_facts_are_used():
    used = {facts_path(entry(path).recipe.model) for path in PUBLIC}
    assert used == set(MODELS.glob("*.json"))
