"""Every family's checkpoint under four methods, beyond the trained context.

Oracles: transformers' own, unmodified model, and the pairwise reference (tests/support/measuring).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import load_source
from ctx_export.validate import validation
from tests.support.decoders import DECODERS, save_decoder
from tests.support.feeding import error
from tests.support.measuring import METHODS, TOLERANCE, Oracle, measured, package
from tests.support.recording import CHECKPOINT


@dataclass
class Lab:
    """A family's checkpoint, traced once, and its oracle."""

    name: str
    root: Path

    @cached_property
    def checkpoint(self) -> Path:
        return save_decoder(DECODERS[self.name], self.root / "checkpoint")

    @cached_property
    def source(self) -> Source:
        return load_source(self.recipe)

    @property
    def recipe(self) -> Recipe:
        return Recipe(model=str(self.checkpoint))

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.name, self.checkpoint)

    def package(self, method: str) -> Path:
        return package(self.source, self.recipe, method, self.root / method)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=DECODERS)
def lab(request, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("method", METHODS)
def test_prefill_and_decode_equal_pytorch(lab, method, support):
    largest = measured(lab.package(method), lab.oracle, method)
    support.record(lab.name, CHECKPOINT, method, largest)
    assert largest <= TOLERANCE


def test_the_methods_are_not_one_another(lab):
    """A package with another method's table could not pass."""
    plain = lab.oracle.logits("none")[-16:]
    for method in ("yarn", "dynamic-ntk"):
        assert error(lab.oracle.logits(method)[-16:], plain) > 30 * TOLERANCE, method


def test_streaming_is_not_full_attention(lab):
    assert measured(lab.package("streaming"), lab.oracle, "none") > 100 * TOLERANCE


def test_its_package_validates(lab):
    report = validation.run(lab.package("yarn"), lab.checkpoint, budget=128)
    assert report.passed, report.lines()
