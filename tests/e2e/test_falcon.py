"""falcon's three ways to count KV heads and both orders of attention and MLP.

Oracle: transformers' own, unmodified model, and its module's projection for the cache's heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.checkpoint import read_checkpoint
from ctx_export.pipeline import export_source, load_source
from ctx_export.validate import validation
from tests.support.decoders import Decoder, save_decoder
from tests.support.families import (
    ORIGINAL_CONTEXT,
    VOCAB,
    edit_config,
    forward,
    load_config,
    load_model,
)
from tests.support.feeding import decode_pieces, error, fed, opened

TOLERANCE = 1e-4  # of the logit scale
IDS = np.random.default_rng(7).integers(0, VOCAB, 200)
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_CONTEXT,
}
# Entries of config.json and the KV heads of 4 query heads.
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "one KV head": ({"multi_query": True}, 1),
    "one KV head, after one another": ({"parallel_attn": False, "bias": True}, 1),
    "as many KV heads": ({"multi_query": False}, 4),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def save(directory: Path, entries: dict[str, Any]) -> Path:
    config = {"ffn_hidden_size": 48, **entries}
    unsaid = ("num_key_value_heads",)
    return save_decoder(Decoder(name="falcon", config=config, unsaid=unsaid), directory)


@pytest.mark.parametrize("name", VARIANTS)
def test_its_package_equals_transformers_and_validates(name, tmp_path):
    entries, kv_heads = VARIANTS[name]
    checkpoint = save(tmp_path / "checkpoint", entries)
    options = {"method": "yarn", "target": 256, "engine": "none", "validate": False}
    recipe = Recipe(model=str(checkpoint), output=tmp_path / "package", **options)
    package = export_source(load_source(recipe), recipe).output
    assert Manifest.load(package).model["kv_heads"] == kv_heads
    rope = Decoder(name="falcon").rope(**YARN)
    expected = forward(load_model(checkpoint, load_config(checkpoint, rope)), IDS)
    with opened(package) as session:
        for pieces in ([], decode_pieces(len(IDS), ORIGINAL_CONTEXT)):
            assert error(fed(session, IDS, pieces), expected) <= TOLERANCE
    report = validation.run(package, checkpoint, budget=128)
    assert report.passed, report.lines()


def test_alibi_is_refused(tmp_path):
    checkpoint = save(tmp_path / "checkpoint", {"multi_query": True})
    edit_config(checkpoint, alibi=True)
    with pytest.raises(UserError, match=r"alibi = true.*no rotary positions"):
        read_checkpoint(checkpoint)
