"""Kinds of layers and which of them rotate. Oracles: transformers' config classes, and its models'
documented lists written by hand."""

from __future__ import annotations

import pytest

from ctx_export.core.errors import UserError
from ctx_export.frontends.layer_kinds import layer_types, rotating_layers

LAYERS = 12


@pytest.mark.parametrize("family", ["cohere2", "gemma2", "gemma3_text", "gpt_oss"])
def test_what_a_config_leaves_out_is_what_transformers_fills_in(family):
    from transformers import AutoConfig

    filled = AutoConfig.for_model(family, num_hidden_layers=LAYERS)
    found = layer_types({"model_type": family, "sliding_window": 9}, LAYERS)
    assert found == filled.layer_types


def test_other_families_have_one_kind():
    assert layer_types({"model_type": "llama"}, LAYERS) is None
    assert rotating_layers({"model_type": "llama"}, 2) == (True, True)


def test_layers_without_a_window_do_not_rotate_in_cohere2():
    config = {"model_type": "cohere2", "sliding_window": 9}
    assert rotating_layers(config, 5) == (True, True, True, False, True)
    assert rotating_layers({"model_type": "cohere2"}, 5) == (True,) * 5


def test_a_list_or_an_interval_says_which_layers_rotate():
    assert rotating_layers({"no_rope_layers": [1, 0, 1]}, 3) == (True, False, True)
    assert rotating_layers({"no_rope_layer_interval": 2}, 4) == (True, False, True, False)


@pytest.mark.parametrize(
    ("read", "config", "reason"),
    [
        (layer_types, {"layer_types": ["full_attention"]}, "1 layer_types for 3 layers"),
        (layer_types, {"sliding_window_pattern": "LLG"}, "state layer_types"),
        (rotating_layers, {"no_rope_layers": [1]}, "1 no_rope_layers for 3 layers"),
    ],
)
def test_what_does_not_fit_the_layers_is_refused(read, config, reason):
    with pytest.raises(UserError, match=reason):
        read(config, 3)
