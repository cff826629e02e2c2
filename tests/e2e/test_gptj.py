"""gptj and codegen: rows of sines and cosines in a buffer, pairs side by side on [B,S,H,D], plain
operators.

Oracle: transformers' own model. It knows no scaling: the rows of its buffer are written here, from
transformers' own frequencies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctx_export.core.errors import UserError
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import export_source, load_source
from ctx_export.validate import torch_reference, validation
from tests.support.families import (
    ORIGINAL_CONTEXT,
    THETA,
    VOCAB,
    copy_with_config,
    forward,
    load_config,
    load_model,
    randomise,
)
from tests.support.feeding import decode_pieces, error, fed, opened

TOLERANCE = 1e-4  # of the logit scale
TARGET, FACTOR, ROTARY_DIM = 256, 4.0, 8
IDS = np.random.default_rng(7).integers(0, VOCAB, 200)
METHODS: dict[str, dict[str, Any]] = {
    "none": {"rope_type": "linear", "factor": 1.0},
    "yarn": {
        "rope_type": "yarn",
        "factor": FACTOR,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    },
    "dynamic-ntk": {"rope_type": "dynamic", "factor": FACTOR},
}


# codegen computes its MLP beside the attention: a smaller one leaves more to that.
FAMILIES: dict[str, dict[str, Any]] = {"gptj": {}, "codegen": {"n_inner": 48}}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64}
    tokens = {
        "n_positions": ORIGINAL_CONTEXT,
        "vocab_size": VOCAB,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(
        request.param, **FAMILIES[request.param], **sizes, **tokens, rotary_dim=ROTARY_DIM
    )
    model = AutoModelForCausalLM.from_config(config)
    randomise(model)
    directory = tmp_path_factory.mktemp(request.param) / "checkpoint"
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> Source:
    return load_source(Recipe(model=str(checkpoint)))


def export(source: Source, output: Path, method: str, **options: Any) -> Path:
    options = options or {"target": TARGET}
    recipe = Recipe(
        model=str(source.checkpoint.directory),
        output=output,
        engine="none",
        validate=False,
        method=method,
        **options,
    )
    return export_source(source, recipe).output


def reference(checkpoint: Path, method: str) -> np.ndarray:
    """transformers' logits [N,V] with rows for `method` in its buffers."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_theta": THETA, **METHODS[method]}
    turning = LlamaConfig(
        head_dim=ROTARY_DIM, max_position_embeddings=ORIGINAL_CONTEXT, rope_parameters=rope
    )
    make = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
    table, multiplier = make(turning, "cpu", seq_len=len(IDS))
    angle = torch.arange(TARGET)[:, None].double() * table.double()
    rows = torch.cat([angle.sin(), angle.cos()], dim=1) * multiplier
    model = load_model(checkpoint, load_config(checkpoint, n_positions=TARGET))
    for layer in model.transformer.h:
        layer.attn.embed_positions.copy_(rows)
    return forward(model, IDS)


@pytest.mark.parametrize("method", METHODS)
def test_prefill_and_decode_equal_transformers(method, checkpoint, source, tmp_path):
    expected = reference(checkpoint, method)
    with opened(export(source, tmp_path / "package", method)) as session:
        for pieces in ([], decode_pieces(len(IDS), ORIGINAL_CONTEXT)):
            assert error(fed(session, IDS, pieces), expected) <= TOLERANCE
    if method != "none":
        assert error(expected, reference(checkpoint, "none")) > 40 * TOLERANCE


def test_dims_that_the_graph_does_not_rotate_are_refused(source, checkpoint, tmp_path):
    from dataclasses import replace

    from ctx_export.frontends.checkpoint import read_checkpoint

    other = read_checkpoint(copy_with_config(checkpoint, tmp_path / "other", rotary_dim=4))
    changed = replace(source, checkpoint=other, spec=other.spec)
    with pytest.raises(UserError, match=r"rotates 8 dims in the graph and 4 by config\.json"):
        export(changed, tmp_path / "package", "none")


@pytest.mark.parametrize("method", METHODS)
def test_its_package_validates(method, source, checkpoint, tmp_path):
    package = export(source, tmp_path / "package", method)
    report = validation.run(package, checkpoint, budget=128)
    assert report.passed, report.lines()


def test_streaming_validates_after_wraps(source, checkpoint, tmp_path):
    options = {"sinks": 3, "window": 29, "max_chunk": 16}
    package = export(source, tmp_path / "package", "streaming", **options)
    report = validation.run(package, checkpoint, budget=160)
    assert report.passed, report.lines()


def test_validation_fails_with_another_table(source, checkpoint, tmp_path):
    """A reference that took its rows from the package alone could not."""
    package = export(source, tmp_path / "package", "yarn")
    path = package / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["scaling"]["inv_freq"][1] *= 1.01
    path.write_text(json.dumps(manifest))
    assert not validation.run(package, checkpoint, budget=128).passed


def test_the_references_rows_are_transformers_own(source, checkpoint):
    """Without scaling the rotary module that is made for these families turns as they do."""
    config = torch_reference.load_config(checkpoint)
    own = load_model(checkpoint, load_config(checkpoint))
    table = {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5}
    rope = torch_reference.HuggingFaceRope(parameters=table, original_context=ORIGINAL_CONTEXT)
    assert config.rope_parameters == table
    reference = torch_reference.TorchReference(checkpoint, rope)
    ids = IDS[:ORIGINAL_CONTEXT]
    ours = reference.logits(ids, rotary=torch_reference.Rotary.UNMODIFIED)[0]
    assert error(ours, forward(own, ids)) <= 1e-6
