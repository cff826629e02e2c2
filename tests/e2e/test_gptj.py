"""gptj apart from what every family is tested for: its config.json, and validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.checkpoint import read_checkpoint
from ctx_export.frontends.source import Source
from ctx_export.pipeline import load_source
from ctx_export.validate import validation
from tests.support.decoders import DECODERS, save_decoder
from tests.support.families import copy_with_config
from tests.support.measuring import package


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(DECODERS["gptj"], tmp_path_factory.mktemp("gptj") / "checkpoint")


@pytest.fixture(scope="module")
def recipe(checkpoint: Path) -> Recipe:
    return Recipe(model=str(checkpoint))


@pytest.fixture(scope="module")
def source(recipe: Recipe) -> Source:
    return load_source(recipe)


def test_dims_that_the_graph_does_not_rotate_are_refused(source, recipe, checkpoint, tmp_path):
    other = read_checkpoint(copy_with_config(checkpoint, tmp_path / "other", rotary_dim=4))
    changed = replace(source, checkpoint=other, spec=other.spec)
    with pytest.raises(UserError, match=r"rotates 8 dims in the graph and 4 by config\.json"):
        package(changed, recipe, "none", tmp_path / "package")


def test_validation_says_that_it_cannot(source, recipe, checkpoint, tmp_path):
    made = package(source, recipe, "yarn", tmp_path / "package")
    with pytest.raises(UserError, match="GPTJConfig takes no rotary settings"):
        validation.run(made, checkpoint, budget=64)
