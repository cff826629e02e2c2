"""recipes/models: facts against the exporter's own reader and against transformers."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from ctx_export.core.plan import make_plan
from ctx_export.core.recipe import Recipe
from ctx_export.core.rope_settings import SLIDING, WHOLE
from ctx_export.frontends.checkpoint import read_config
from ctx_export.frontends.layer_kinds import layer_types
from tools.recipes.published import MODELS, facts_path, published

FILES = sorted(MODELS.glob("*.json"))
MODEL_KEYS = ("model_type", "architectures", "hidden_size", "vocab_size", "intermediate_size")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def facts(request):
    return published(request.param)


def hugging_face_config(facts):
    """transformers' own config of the facts; it writes into nested entries."""
    transformers = pytest.importorskip("transformers")
    config = copy.deepcopy(dict(facts.config))
    return transformers.AutoConfig.for_model(config.pop("model_type"), **config)


def test_a_file_says_where_it_is_published_and_was_checked(facts):
    assert set(facts.source) == {"config", "checked"}
    assert facts.source["config"] == f"https://huggingface.co/{facts.model}/blob/main/config.json"
    assert facts.source["checked"] and all(facts.source["checked"])
    assert facts_path(facts.model) in FILES
    held = json.loads(facts_path(facts.model).read_text())
    ours = {key for key in held if key.startswith("_")}
    assert ours == {"_source", "_parameters"}


def test_a_file_reads_as_a_checkpoint_s_config(facts, tmp_path: Path):
    """What the exporter reads from it as a config.json is what stands there."""
    (tmp_path / "config.json").write_text(facts_path(facts.model).read_text())
    config = read_config(tmp_path)
    assert {key: config[key] for key in facts.config} == dict(facts.config)
    assert {key for key in config if not key.startswith("_")} == set(facts.config)


def test_the_decoder_is_supported_and_its_shape_is_the_stated_one(facts):
    spec, config = facts.spec(), facts.config
    assert all(key in config for key in MODEL_KEYS)
    assert (spec.hidden, spec.vocab) == (config["hidden_size"], config["vocab_size"])
    assert (spec.layers, spec.heads) == (
        config["num_hidden_layers"],
        config["num_attention_heads"],
    )
    assert spec.kv_heads == config["num_key_value_heads"]
    own = config.get("head_dim")
    assert spec.head_dim == (own or spec.hidden // spec.heads)
    assert own is not None or spec.head_dim * spec.heads == spec.hidden
    assert spec.max_position_embeddings == config["max_position_embeddings"]


def test_layers_are_of_the_kinds_that_transformers_makes(facts):
    config = hugging_face_config(facts)
    spec = facts.spec()
    theirs = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if theirs is None:
        theirs = [SLIDING if window else WHOLE] * spec.layers
    stated = layer_types(facts.config, spec.layers)
    if stated is not None:
        assert stated == list(theirs)
    assert spec.windows == tuple(window if kind == SLIDING else 0 for kind in theirs)


def test_the_parameters_are_those_of_the_architecture(facts):
    """transformers builds the model of the facts without memory and counts it: a wrong width,
    depth, vocabulary, number of experts or tie would show."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(hugging_face_config(facts))
    assert sum(weight.numel() for weight in model.parameters()) == facts.parameters


def rotary_embedding(config):
    """transformers' rotary embedding of a config."""
    kind = type(config).__module__.replace("configuration_", "modeling_")
    module = importlib.import_module(kind)
    names = [name for name in vars(module) if name.endswith("RotaryEmbedding")]
    assert len(names) == 1
    return getattr(module, names[0])(config)


def test_frequencies_are_transformers(facts):
    """Every layer's table of the checkpoint's own settings, to 1e-6 relative: transformers
    computes in float32."""
    config = hugging_face_config(facts)
    rotary = rotary_embedding(config)
    plan = make_plan(facts.spec(), Recipe())
    kinds = getattr(config, "layer_types", None) or [""] * plan.spec.layers
    for layer, kind in enumerate(kinds):
        own = f"{kind}_inv_freq" if hasattr(rotary, f"{kind}_inv_freq") else "inv_freq"
        if own == "inv_freq":
            theirs, multiplier = rotary.inv_freq, rotary.attention_scaling
        else:
            theirs = getattr(rotary, own)
            multiplier = getattr(rotary, f"{kind}_attention_scaling")
        ours = plan.tables[layer]
        if not plan.spec.rope_of(layer).rotates:
            assert not ours.inv_freq.any()
            continue
        if plan.length_table is not None:
            continue
        np.testing.assert_allclose(ours.inv_freq, theirs.double().numpy(), rtol=1e-6)
        assert ours.multiplier == pytest.approx(multiplier, rel=1e-6)


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if "long_factor" in (published(path).config.get("rope_scaling") or {})
    ],
    ids=lambda path: path.stem,
)
@pytest.mark.parametrize("beyond", [0, 1])
def test_longrope_is_transformers_on_both_sides_of_its_switch(path, beyond):
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    facts = published(path)
    config = hugging_face_config(facts)
    plan = make_plan(facts.spec(), Recipe())
    length = plan.original_context + beyond
    theirs, multiplier = rope_utils.ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=length)
    assert plan.length_table is not None
    ours, own = plan.length_table.at(length)
    np.testing.assert_allclose(ours, theirs.double().numpy(), rtol=1e-6)
    assert own == pytest.approx(multiplier, rel=1e-6)
