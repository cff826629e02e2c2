"""Checkpoints whose kinds of layers rotate differently: each layer keeps its own table and window.

Oracle: transformers' own model of the same config, one full forward.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.core.manifest import Manifest
from ctx_export.validate import validation
from tests.support import tiny
from tests.support.feeding import error, fed, opened

TOLERANCE = 1e-4  # of the logit scale
WINDOW, TARGET, CHUNK = 24, 256, 8
TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
IDS = np.random.default_rng(4).integers(0, tiny.VOCAB, 180)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(
        tmp_path_factory.mktemp("layers") / "checkpoint",
        family="olmo3",
        hidden_size=tiny.HEADS * tiny.HEAD_DIM,
        num_hidden_layers=3,
        layer_types=TYPES,
        sliding_window=WINDOW,
        rope_parameters=ROPES,
        max_position_embeddings=64,
    )


def expected(checkpoint: Path, full: dict[str, Any]) -> np.ndarray:
    """transformers' logits where the layers that see every token rotate by `full`."""
    import torch

    model = tiny.load(checkpoint, {**ROPES, "full_attention": full})
    with torch.inference_mode():
        return model(torch.from_numpy(IDS[None])).logits[0].numpy()


@pytest.fixture(scope="module")
def source(checkpoint: Path) -> Any:
    return tiny.source(checkpoint)


CASES = {
    "its own": ({}, ROPES["full_attention"]),
    "yarn": ({"method": "yarn"}, {**YARN, "rope_theta": 1e6}),
    "longer base": ({"method": "theta", "parameters": {"rope_theta": 4e6}}, {
        "rope_type": "default", "rope_theta": 4e6,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_layer_keeps_its_own_table_and_window(checkpoint, source, tmp_path, name):
    options, full = CASES[name]
    package = tiny.export(source, tmp_path / "package", target=TARGET, max_chunk=CHUNK, **options)
    manifest = Manifest.load(package)
    assert [cache.policy for cache in manifest.layers] == ["bounded", "full", "bounded"]
    assert [own is None for own in manifest.scaling["layers"]] == [False, True, False]
    reference = expected(checkpoint, full)
    with opened(package) as session:
        for pieces in ([], [1] * 179, [7, 1, 30, 3, 64]):
            assert error(fed(session, IDS, pieces), reference) < TOLERANCE


def test_a_method_that_follows_the_length_leaves_the_others_alone(checkpoint, source, tmp_path):
    """dynamic-ntk at a planned length, keys unrotated in every layer."""
    package = tiny.export(
        source, tmp_path / "package", method="dynamic-ntk", target=TARGET, max_chunk=CHUNK
    )
    assert {cache.keys for cache in Manifest.load(package).layers} == {"unrotated"}
    growth = 4.0 * len(IDS) / 64 - 3.0
    base = 1e6 * growth ** (tiny.HEAD_DIM / (tiny.HEAD_DIM - 2))
    reference = expected(checkpoint, {"rope_type": "default", "rope_theta": base})
    with opened(package) as session:
        assert error(fed(session, IDS, [50, 1, 1]), reference) < TOLERANCE


def test_the_tables_differ_enough_to_be_noticed(checkpoint):
    """Giving every layer one table would change logits by far more than the tolerance."""
    import torch

    one = dict.fromkeys(ROPES, ROPES["full_attention"])
    with torch.inference_mode():
        logits = tiny.load(checkpoint, one)(torch.from_numpy(IDS[None])).logits[0].numpy()
    assert error(logits, expected(checkpoint, ROPES["full_attention"])) > 100 * TOLERANCE


def test_the_package_is_validated_with_its_own_tables(checkpoint, source, tmp_path):
    """A layer's own table that is wrong is noticed, in the manifest as in the graph."""
    package = tiny.export(source, tmp_path / "package", target=TARGET, max_chunk=CHUNK)
    report = validation.run(package, checkpoint, budget=128)
    assert report.passed, report.lines()
    assert report.frequency_error < 2e-6
    held = Manifest.load(package)
    wrong = tiny.copy(package, tmp_path / "wrong")
    own = np.asarray(held.scaling["layers"][0]["inv_freq"], np.float32)
    tiny.edit_table(wrong, "inv_freq.layer0", own * np.float32(1.01))
    assert not validation.run(wrong, checkpoint, budget=128).passed
