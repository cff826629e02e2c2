"""Further families: plain, yarn, streaming and dynamic NTK, three times past the trained context.

Oracles: transformers' own, unmodified model under the method's rope_parameters, one forward at
batch 1; for streaming, which transformers does not have, the pairwise reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.core.manifest import Manifest
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import export_source, load_source
from ctx_export.validate import validation
from ctx_export.validate.pairwise import PairwiseReference
from ctx_export.validate.rope_tables import own_tables
from ctx_export.validate.visibility import Group, Rule
from tests.support.decoders import DECODERS, Decoder, save_decoder
from tests.support.families import ORIGINAL_CONTEXT, VOCAB, forward, load_config, load_model
from tests.support.feeding import decode_pieces, error, fed, opened

TOLERANCE = 1e-4  # of the logit scale
TARGET, FACTOR, SINKS, RECENT = 256, 4.0, 3, 45
IDS = np.random.default_rng(7).integers(0, VOCAB, 200)
YARN = {
    "rope_type": "yarn",
    "factor": FACTOR,
    "original_max_position_embeddings": ORIGINAL_CONTEXT,
}
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "yarn": YARN,
    "dynamic-ntk": {"rope_type": "dynamic", "factor": FACTOR},
}


@dataclass
class Lab:
    """A family's checkpoint, traced once, with what was made of it."""

    decoder: Decoder
    root: Path
    references: dict[str, np.ndarray] = field(default_factory=dict)
    packages: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def checkpoint(self) -> Path:
        return save_decoder(self.decoder, self.root / "checkpoint")

    @cached_property
    def source(self) -> Source:
        return load_source(Recipe(model=str(self.checkpoint)))

    def package(self, name: str, **options: Any) -> Path:
        if name not in self.packages:
            self.packages[name] = self._export(name, options)
        return self.packages[name]

    def _export(self, name: str, options: dict[str, Any]) -> Path:
        recipe = Recipe(
            model=str(self.checkpoint),
            output=self.root / name,
            engine="none",
            validate=False,
            force=True,
            **options,
        )
        return export_source(self.source, recipe).output

    def reference(self, method: str) -> np.ndarray:
        """transformers' logits [N,V] under a method, of a fresh model."""
        if method not in self.references:
            rope = self.decoder.rope(**METHODS[method])
            model = load_model(self.checkpoint, load_config(self.checkpoint, rope))
            self.references[method] = forward(model, IDS)
        return self.references[method]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=DECODERS)
def lab(request, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(DECODERS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("method", METHODS)
def test_prefill_and_decode_equal_transformers(lab, method):
    package = lab.package(method, method=method, target=TARGET)
    with opened(package) as session:
        for pieces in ([], decode_pieces(len(IDS), ORIGINAL_CONTEXT), [1, 7, 64, 3, 37]):
            assert error(fed(session, IDS, pieces), lab.reference(method)) <= TOLERANCE


def test_the_methods_are_not_one_another(lab):
    """A package with another method's table could not pass."""
    last = {method: lab.reference(method)[-16:] for method in METHODS}
    for method in ("yarn", "dynamic-ntk"):
        assert error(last[method], last["none"]) > 100 * TOLERANCE, method


def by_cache_slot(sinks: int, window: int) -> Rule:
    """Positions of the tokens held are the slots of a cache of sinks and window."""

    def groups(query: int) -> tuple[Group, ...]:
        recent = np.arange(max(sinks, query - window + 1), query + 1)
        held = np.concatenate([np.arange(min(sinks, query + 1)), recent])
        slots = np.arange(len(held))
        return (Group(keys=held, positions=slots, query_position=len(held) - 1),)

    return groups


def test_streaming_equals_positions_by_cache_slot(lab):
    package = lab.package(
        "streaming", method="streaming", sinks=SINKS, window=RECENT, max_chunk=16
    )
    manifest = Manifest.load(package)
    main = np.asarray(manifest.scaling["inv_freq"]), float(manifest.scaling["multiplier"])
    tables = [own or main for own in own_tables(manifest)]
    reference = PairwiseReference(
        lab.checkpoint,
        [by_cache_slot(cache.sinks, cache.window) for cache in manifest.layers],
        [lambda length, table=table: table for table in tables],
    )
    expected = reference.logits(IDS)
    with opened(package) as session:
        for pieces in ([], decode_pieces(len(IDS), ORIGINAL_CONTEXT)):
            assert error(fed(session, IDS, pieces), expected) <= TOLERANCE
    assert error(expected[-16:], lab.reference("none")[-16:]) > 100 * TOLERANCE


def test_its_package_validates(lab):
    package = lab.package("yarn", method="yarn", target=TARGET)
    report = validation.run(package, lab.checkpoint, budget=128)
    assert report.passed, report.lines()
