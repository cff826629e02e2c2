"""Families of every distinct structure in float16 and bfloat16, with their TensorRT-RTX engines.

Oracles: flash-attention's gate (at most twice PyTorch's own error in the same precision, and a
stated floor) by validation against transformers; one plugin layer a decoder layer by hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ctx_export.core.manifest import Manifest
from ctx_export.core.recipe import Recipe
from ctx_export.pipeline import export_source, load_source
from ctx_export.validate import validation
from tests.support.decoders import DECODERS, save_decoder

LAYERS = 2
# Keys repeated before they are rotated; caps and windows; layers without positions; a dense layer
# before experts; pairs side by side; rotation of a part of fused heads.
STRUCTURES = {
    "falcon": "fp16",
    "gemma2": "fp16",
    "exaone4": "bf16",
    "glm4_moe": "bf16",
    "helium": "fp16",
    "persimmon": "bf16",
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("family", "precision"), STRUCTURES.items())
def test_low_precision_validates_and_every_layer_is_a_plugin_layer(family, precision, tmp_path):
    checkpoint = save_decoder(DECODERS[family], tmp_path / "checkpoint")
    recipe = Recipe(
        model=str(checkpoint),
        output=tmp_path / "package",
        method="yarn",
        target=256,
        precision=precision,
        engine="tensorrt-rtx",
        validate=False,
        max_chunk=16,
    )
    package: Path = export_source(load_source(recipe), recipe).output
    manifest = Manifest.load(package)
    assert manifest.engine is not None
    assert len(manifest.engine["plugin_layers"]) == LAYERS
    assert (package / "model.engine").stat().st_size > 0
    report = validation.run(package, checkpoint, budget=128)
    assert report.passed, report.lines()
