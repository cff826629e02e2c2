from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.rope_settings import (
    FAMILY_PARTIAL_ROTARY_FACTOR,
    FAMILY_THETA,
    TYPES,
    RopeSettings,
    read_layer_rope_settings,
    read_rope_settings,
)
from ctx_export.scaling import names

DEMO = Path(__file__).parents[3] / "exporter/ctx_export/demo/config.json"
LONGROPE = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 40.0]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


def read(**config) -> RopeSettings:
    return read_rope_settings(config)


@pytest.mark.parametrize("word", ["type", "rope_type"])
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("kind", "given", "method", "parameters"),
    [
        ("default", {}, "none", {}),
        ("linear", {"factor": 2}, "linear", {"factor": 2.0}),
        ("dynamic", {"factor": 4}, "dynamic-ntk", {"factor": 4.0}),
        (
            "yarn",
            {"factor": 4, "beta_fast": 16, "truncate": False, "mscale": None},
            "yarn",
            {"factor": 4.0, "beta_fast": 16.0, "truncate": False},
        ),
        ("yarn", {"factor": 16.0, "finetuned": True}, "yarn", {"factor": 16.0}),
        ("llama3", LLAMA3, "llama3", LLAMA3),
        (
            "longrope",
            LONGROPE,
            "longrope",
            {"short_factor": (1.0, 1.5), "long_factor": (2.0, 40.0)},
        ),
        (
            "su",
            {**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.2},
            "longrope",
            {
                "short_factor": (1.0, 1.5),
                "long_factor": (2.0, 40.0),
                "short_mscale": 1.1,
                "long_mscale": 1.2,
            },
        ),
    ],
)
def test_either_spelling_of_every_type(kind, given, method, parameters, word, spelling):
    settings = read(rope_theta=5e5, **{spelling: {word: kind, **given}})
    assert settings == RopeSettings(method=method, theta=5e5, parameters=parameters)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_scaling": {}, "rope_parameters": None},
        {"rope_parameters": {"rope_theta": 1e6}},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_theta": 1e6},
        {"rope_scaling": {"type": "default"}, "rope_theta": 1e6},
    ],
)
def test_no_scaling(config):
    assert read_rope_settings(config) == RopeSettings(method="none", theta=1e6)


def test_demo():
    config = json.loads(DEMO.read_text())
    assert read_rope_settings(config) == RopeSettings(method="none", theta=1e4)


def test_transformers_5_round_trip(tmp_path):
    """What transformers writes for a config of its own making is read back the same."""
    from transformers import LlamaConfig

    given = {"rope_type": "yarn", "rope_theta": 2e5, "beta_slow": 2.0, **YARN}
    LlamaConfig(max_position_embeddings=131072, rope_parameters=given).save_pretrained(tmp_path)
    assert read_rope_settings(json.loads((tmp_path / "config.json").read_text())) == RopeSettings(
        method="yarn",
        theta=2e5,
        original_context=32768,
        parameters={"factor": 4.0, "beta_slow": 2.0},
    )


def test_phi3_of_transformers_5(tmp_path):
    from transformers import Phi3Config

    Phi3Config(
        hidden_size=12,
        num_attention_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0],
            "long_factor": [2.0],
            "partial_rotary_factor": 0.5,
        },
    ).save_pretrained(tmp_path)
    assert read_rope_settings(json.loads((tmp_path / "config.json").read_text())) == RopeSettings(
        method="longrope",
        theta=1e4,
        partial_rotary_factor=0.5,
        original_context=16,
        parameters={"short_factor": (1.0,), "long_factor": (2.0,)},
    )


def test_phi3_s_automatic_original_context_means_nothing_without_scaling(tmp_path):
    from transformers import Phi3Config

    Phi3Config(hidden_size=16, num_attention_heads=2, max_position_embeddings=64).save_pretrained(
        tmp_path
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["original_max_position_embeddings"] == 4096
    assert read_rope_settings(config).original_context is None


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": {"type": "yarn", **YARN}},
        {
            "rope_scaling": {"type": "yarn", "factor": 4.0},
            "original_max_position_embeddings": 32768,
        },
        {"rope_scaling": {"type": "yarn", **YARN}, "original_max_position_embeddings": 32768},
    ],
)
def test_original_context_nested_or_at_the_top(config):
    assert read_rope_settings(config).original_context == 32768


def test_original_context_is_none_where_nobody_gives_it():
    assert read(rope_scaling={"type": "linear", "factor": 2.0}).original_context is None


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({}, 1.0),
        ({"partial_rotary_factor": 0.75}, 0.75),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75}}, 0.75),
        ({"model_type": "gpt_neox", "rotary_pct": 0.4, "rotary_emb_base": 10000}, 0.4),
        ({"model_type": "gpt_neox"}, 0.25),
        ({"model_type": "phi", "partial_rotary_factor": 0.4}, 0.4),
    ],
)
def test_partial_rotation(config, share):
    assert read_rope_settings(config).partial_rotary_factor == share


def test_proportional_keeps_its_share_as_a_parameter():
    entries = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    expected = {"factor": 1.0, "partial_rotary_factor": 0.25}
    settings = read(rope_parameters=entries)
    assert settings == RopeSettings(method="proportional", theta=1e6, parameters=expected)
    settings = read(rope_parameters={**entries, "factor": 8.0})
    assert settings.parameters == {"factor": 8.0, "partial_rotary_factor": 0.25}


@pytest.mark.parametrize("family", sorted({*FAMILY_THETA, *FAMILY_PARTIAL_ROTARY_FACTOR, "llama"}))
def test_family_defaults_are_transformers_own(family):
    from transformers import AutoConfig

    config = AutoConfig.for_model(family)
    expected = config.rope_parameters
    settings = read(model_type=family)
    assert expected["rope_type"] == "default"
    assert settings.theta == expected["rope_theta"]
    assert settings.partial_rotary_factor == (expected.get("partial_rotary_factor") or 1.0)


def test_both_spellings_may_say_the_same():
    settings = read(
        rope_scaling={"type": "su", **LONGROPE},
        rope_parameters={"rope_type": "longrope", "rope_theta": 3e4, **LONGROPE},
        rope_theta=30000,
    )
    assert (settings.method, settings.theta) == ("longrope", 3e4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rope_scaling": {"type": "mrope", "mrope_section": [1]}},
            "rope_scaling.type is 'mrope': this type is unknown (known: default, linear",
        ),
        ({"rope_parameters": {"rope_type": "ntk"}}, "rope_parameters.rope_type is 'ntk'"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_parameters.rope_type is ['yarn']"),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
            "rope_scaling says type 'linear' and rope_type 'yarn': they contradict",
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            "rope_scaling says 'linear' but rope_parameters says 'default'",
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            "rope_scaling.factor is 2.0 but rope_parameters.factor is 4.0",
        ),
        (
            {
                "rope_scaling": {"type": "yarn", "factor": 2.0},
                "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 64},
            },
            "rope_scaling.beta_fast is None but rope_parameters.beta_fast is 64.0",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
            "rope_theta is 10000 but rope_parameters.rope_theta is 1e+06",
        ),
        (
            {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}},
            "partial_rotary_factor is 0.5 but rope_parameters.partial_rotary_factor is 0.25",
        ),
        (
            {"original_max_position_embeddings": 1, "rope_scaling": {"type": "yarn", **YARN}},
            "original_max_position_embeddings is 1 but rope_scaling.original_max_pos",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing: type linear"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling.factor is missing: type dynamic"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": None}}, "factor is missing"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
            "rope_scaling.high_freq_factor is missing: type llama3",
        ),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1.0]}},
            "rope_scaling.long_factor is missing: type su",
        ),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling has factor but no rope_type"),
        ({"rope_scaling": {"type": "default", "factor": 4.0}}, "rope_scaling.factor is unknown"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1e3}},
            "rope_scaling.alpha is unknown (keys of this method: none)",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fsat": 1}},
            "rope_scaling.beta_fsat is unknown, did you mean beta_fast?",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, **LONGROPE}},
            "rope_scaling.short_factor is unknown",
        ),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [2]}}, "mrope_section"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn': it must be an object or null"),
        ({"rope_scaling": [1]}, "rope_scaling is [1]: it must be an object or null"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}, "rope_theta": 1e4}},
            "rope_parameters has settings per kind of layer and beside them rope_theta",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
            "layers of type full_attention: rope_parameters.factor is missing",
        ),
        ({"global_rope_theta": 1e6}, "global_rope_theta is 1000000.0"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5: it must be at most 1"),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2,
                    "original_max_position_embeddings": 1.5,
                }
            },
            "original_max_position_embeddings is 1.5: it must be a whole number",
        ),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": 2.0}},
            "rope_scaling.long_factor is 2.0: it must be a list of numbers",
        ),
    ],
)
def test_what_cannot_be_honoured_is_an_error_of_one_line(config, message):
    with pytest.raises(UserError) as caught:
        read_rope_settings(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -4.0, True, "4", float("nan"), float("inf"), [4.0]])
@pytest.mark.parametrize(
    "key", ["factor", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"]
)
def test_values_that_are_no_positive_number(key, value):
    entries = {"rope_type": "yarn", **YARN, key: value}
    with pytest.raises(UserError, match=rf"rope_parameters.{key} is .*finite number above 0"):
        read(rope_parameters=entries)


@pytest.mark.parametrize("value", [0, -4.0, True, "1e6", float("nan")])
def test_top_level_theta_that_is_no_positive_number(value):
    with pytest.raises(UserError, match=r"^rope_theta is .*finite number above 0"):
        read(rope_theta=value)


def test_types_are_all_that_transformers_knows():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(TYPES) == {"default", "su", *ROPE_INIT_FUNCTIONS}


def test_every_type_is_a_method():
    assert set(TYPES.values()) <= set(names())


LINEAR = {"rope_type": "linear", "factor": 8.0}
PER_LAYER = {
    "full_attention": RopeSettings(method="linear", theta=1e6, parameters={"factor": 8.0}),
    "sliding_attention": RopeSettings(method="none", theta=1e4, kept=True),
}


@pytest.mark.parametrize(
    "config",
    [
        {
            "rope_parameters": {
                "full_attention": {**LINEAR, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": LINEAR},
    ],
    ids=["5.x", "4.x"],
)
def test_settings_per_kind_of_layer_are_read_in_both_spellings(config):
    """Gemma 3's, as transformers 4 and 5 write them."""
    assert read_layer_rope_settings(config) == PER_LAYER
    assert read_rope_settings(config) == PER_LAYER["full_attention"]


def test_olmo3s_scaling_is_of_layers_that_see_every_token():
    """As transformers' Olmo3Config reads a config.json of version 4."""
    from transformers import Olmo3Config

    flat = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    ours = read_layer_rope_settings({"model_type": "olmo3", **flat})
    theirs = Olmo3Config(**flat).rope_parameters
    assert {kind: own.theta for kind, own in ours.items()} == {
        kind: entries["rope_theta"] for kind, entries in theirs.items()
    }
    assert {kind: own.method for kind, own in ours.items()} == {
        kind: entries["rope_type"].replace("default", "none") for kind, entries in theirs.items()
    }


def test_one_setting_has_no_kind():
    assert read_layer_rope_settings({"rope_theta": 1e6}) == {
        "": RopeSettings(method="none", theta=1e6)
    }
