"""Oracle: the same checkpoint held whole in memory, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.validate.layerwise import load_by_layer
from ctx_export.validate.synthetic import synthetic_cache
from ctx_export.validate.torch_reference import HuggingFaceRope, TorchReference, load_config
from tests.support import tiny
from tests.support.checkpoints import split_shards

IDS = np.random.default_rng(6).integers(0, tiny.VOCAB, (1, 90))
ROPE = HuggingFaceRope(
    parameters={
        "rope_type": "linear",
        "rope_theta": tiny.THETA,
        "factor": 4.0,
    },
    original_context=tiny.ORIGINAL_CONTEXT,
)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Callable[..., Path]:
    """A checkpoint, tied or not, in one file or in two."""
    made: dict[tuple[bool, bool], Path] = {}

    def find(*, tied: bool = False, sharded: bool = False) -> Path:
        if (tied, sharded) not in made:
            directory = tmp_path_factory.mktemp("checkpoint")
            tiny.save(directory, tie_word_embeddings=tied)
            if sharded:
                split_shards(directory)
            made[tied, sharded] = directory
        return made[tied, sharded]

    return find


PRECISIONS = [("fp32", "fp32"), ("fp16", "fp32"), ("bf16", "bf16")]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one-file", "sharded"])
@pytest.mark.parametrize(("weights", "compute"), PRECISIONS)
def test_layer_by_layer_gives_the_whole_model_s_logits(
    checkpoints, tied, sharded, weights, compute
):
    checkpoint = checkpoints(tied=tied, sharded=sharded)
    whole, layered = (
        TorchReference(checkpoint, ROPE, weights=weights, compute=compute, by_layer=by_layer)
        for by_layer in (False, True)
    )
    expected = whole.logits(IDS)
    np.testing.assert_array_equal(layered.logits(IDS), expected)
    np.testing.assert_array_equal(layered.logits(IDS), expected)  # the weights come back
    cache = synthetic_cache(whole.own_cache(IDS), 300, weights)
    np.testing.assert_array_equal(layered.probe(cache, IDS[:, :9]), whole.probe(cache, IDS[:, :9]))


def on_meta(module: Any) -> list[bool]:
    return [parameter.is_meta for parameter in module.parameters()]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_one_layer_s_weights_are_in_memory_at_a_time(checkpoints, tied):
    checkpoint = checkpoints(tied=tied)
    layered = TorchReference(checkpoint, ROPE, by_layer=True)
    model = layered._model
    layers = model.model.layers
    held: list[list[bool]] = []
    for layer in layers:
        # Called after the hooks that load and before those that drop.
        layer.mlp.register_forward_hook(
            lambda *_: held.append([not any(on_meta(other)) for other in layers])
        )
    assert all(all(on_meta(layer)) for layer in layers)
    layered.logits(IDS)
    assert held == [[True, False], [False, True]]
    assert all(all(on_meta(layer)) for layer in layers)
    outside = [p for name, p in model.named_parameters() if not name.startswith("model.layers")]
    assert len(outside) == 2 + (not tied) and not any(p.is_meta for p in outside)
    shared = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert shared is tied


def test_the_index_says_which_files_are_the_checkpoint_s(checkpoints, tmp_path):
    """Others with the same names lie beside some published checkpoints."""
    from safetensors.numpy import load_file, save_file

    checkpoint = tiny.copy(checkpoints(sharded=True), tmp_path / "checkpoint")
    expected = TorchReference(checkpoint, ROPE).logits(IDS)
    for shard in checkpoint.glob("model-*.safetensors"):
        doubled = {name: 2 * array for name, array in load_file(shard).items()}
        save_file(doubled, checkpoint / f"z-{shard.name}")
        save_file(doubled, checkpoint / f"a-{shard.name}")
    layered = TorchReference(checkpoint, ROPE, by_layer=True)
    np.testing.assert_array_equal(layered.logits(IDS), expected)


def test_a_checkpoint_without_safetensors_is_refused(checkpoints, tmp_path):
    checkpoint = tiny.copy(checkpoints(), tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has neither"):
        TorchReference(checkpoint, ROPE, by_layer=True)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"], ids=["outside", "layer"]
)
def test_a_tensor_that_is_stored_under_another_name_is_refused(checkpoints, tmp_path, name):
    from safetensors.numpy import load_file, save_file

    checkpoint = tiny.copy(checkpoints(), tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["fused"] = tensors.pop(name)
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match=f"the checkpoint has no tensor {name}: .* fit into mem"):
        TorchReference(checkpoint, ROPE, by_layer=True)


def test_constants_that_no_file_holds_are_refused(tmp_path):
    """gemma multiplies its embeddings by one that transformers computes."""
    checkpoint = tiny.save(tmp_path, family="gemma")
    with pytest.raises(UserError, match=r"does not hold the reference's constant .*embed_scale"):
        load_by_layer(checkpoint, load_config(checkpoint), "fp32", "fp32")
