"""What is refused from config.json alone, with its reason and the way out."""

from __future__ import annotations

import pytest

from ctx_export.core.errors import UserError
from ctx_export.frontends.checkpoint import read_checkpoint
from ctx_export.frontends.refusals import check_supported
from tests.support.decoders import DECODERS, save_decoder
from tests.support.families import edit_config


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "kv_lora_rank = 512.*latent"),
        ({"model_type": "falcon", "alibi": True}, "alibi = true.*no rotary"),
        ({"model_type": "bloom"}, "model_type bloom.*ALiBi"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 8}}, "part of a gemma3 model"),
        ({"is_encoder_decoder": True}, "encoder's states.*decoder-only"),
        ({"architectures": ["ModernBertForMaskedLM"]}, "those after them.*decoder-only"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "type linear_attention.*state"),
        ({"layer_types": ["chunked_attention"]}, "type chunked_attention.*own chunk"),
        ({"layers_block_type": ["mamba", "attention"]}, "type mamba.*state"),
        ({"mamba_d_state": 16}, "mamba_d_state = 16.*no keys"),
        ({"model_type": "llama4_text"}, "attn_temperature_tuning.*by their positions"),
        (
            {"rope_parameters": {"rope_type": "yarn", "llama_4_scaling_beta": 0.1}},
            "rope_parameters.llama_4_scaling_beta.*by their positions",
        ),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quant_method mxfp4.*dequantize"),
    ],
)
def test_a_decoder_that_cannot_be_exported_is_refused_with_the_way_out(entries, reason):
    with pytest.raises(UserError, match=reason):
        check_supported(entries)


def test_the_same_keys_without_effect_are_passed_over():
    check_supported({"alibi": False, "quantization_config": None, "kv_lora_rank": None})
    check_supported({"architectures": ["LlamaForCausalLM"], "is_encoder_decoder": False})
    check_supported({"layer_types": ["full_attention", "sliding_attention"]})
    check_supported({"model_type": "llama4_text", "attn_temperature_tuning": False})
    check_supported({"mamba_d_state": 16, "layers_block_type": ["attention"]})


def test_a_checkpoint_is_refused_before_its_weights_are_looked_for(tmp_path):
    directory = save_decoder(DECODERS["phi"], tmp_path / "checkpoint")
    read_checkpoint(directory)
    edit_config(directory, kv_lora_rank=16)
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="kv_lora_rank = 16"):
        read_checkpoint(directory)
