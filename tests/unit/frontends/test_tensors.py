"""Names and pieces of a checkpoint's tensors. Oracle: transformers' own loading of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ctx_export.core.errors import UserError
from ctx_export.frontends.checkpoint import Checkpoint, read_checkpoint
from ctx_export.frontends.shards import JoinedTensor, TensorLocation
from ctx_export.frontends.tensors import by_module_name, constants
from tests.support.decoders import DECODERS, save_decoder
from tests.support.families import load_config, load_model


def on_meta(directory: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(directory))


def numbers(place: TensorLocation | JoinedTensor) -> np.ndarray:
    pieces = place.pieces if isinstance(place, JoinedTensor) else (place,)
    raw = b"".join(
        piece.file.read_bytes()[piece.offset : piece.offset + piece.length] for piece in pieces
    )
    return np.frombuffer(raw, np.float32).reshape(place.shape)


@pytest.mark.parametrize("name", ["gpt_neox", "mixtral", "qwen2_moe"])
def test_every_tensor_of_the_module_is_found_with_its_numbers(name, tmp_path):
    directory = save_decoder(DECODERS[name], tmp_path / "checkpoint")
    found = by_module_name(read_checkpoint(directory), on_meta(directory)).tensors
    loaded = load_model(directory, load_config(directory)).state_dict()
    for key, tensor in loaded.items():
        if key != "lm_head.weight" or key in found:  # tied: the embedding's
            np.testing.assert_array_equal(numbers(found[key]), tensor.numpy(), err_msg=key)


def test_an_expert_without_one_of_its_tensors_is_refused(tmp_path):
    directory = save_decoder(DECODERS["mixtral"], tmp_path / "checkpoint")
    checkpoint = read_checkpoint(directory)
    name = "model.layers.0.block_sparse_moe.experts.1.w3.weight"
    kept = {key: place for key, place in checkpoint.tensors.items() if key != name}
    assert len(kept) == len(checkpoint.tensors) - 1
    cut = Checkpoint(
        directory=directory, config=checkpoint.config, spec=checkpoint.spec, tensors=kept
    )
    with pytest.raises(UserError, match=r"5 tensors for model.layers.0.*of 3 experts"):
        by_module_name(cut, on_meta(directory))


def test_constants_that_no_file_holds_are_those_of_a_loaded_model(tmp_path):
    directory = save_decoder(DECODERS["gemma"], tmp_path / "checkpoint")
    found = constants(on_meta(directory))
    loaded = dict(load_model(directory, load_config(directory)).named_buffers())
    assert "model.embed_tokens.embed_scale" in found
    for name, value in found.items():
        np.testing.assert_array_equal(value.numpy(), loaded[name].numpy(), err_msg=name)
