"""KV heads by config.json. Oracle: the key projection that transformers makes of the config."""

from __future__ import annotations

import pytest

from ctx_export.frontends.head_counts import kv_heads

HEADS, HEAD_DIM = 4, 8


@pytest.mark.parametrize(
    "entries",
    [
        {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": True},
        {"multi_query": True, "num_kv_heads": 2},
        {"multi_query": False},
        {},
    ],
)
def test_falcons_switches_are_transformers_own(entries):
    from transformers import FalconConfig
    from transformers.models.falcon.modeling_falcon import FalconAttention

    sizes = {"hidden_size": HEADS * HEAD_DIM, "num_attention_heads": HEADS}
    projection = FalconAttention(FalconConfig(**sizes, **entries), 0).query_key_value
    expected = (projection.out_features // HEAD_DIM - HEADS) // 2
    stated = {"num_key_value_heads": entries.get("num_kv_heads"), **entries}
    assert kv_heads({"model_type": "falcon", **stated}, HEADS) == expected


def test_others_have_what_they_state_or_all_heads():
    assert kv_heads({"num_key_value_heads": 2}, HEADS) == 2
    assert kv_heads({"num_key_value_heads": None}, HEADS) == HEADS
