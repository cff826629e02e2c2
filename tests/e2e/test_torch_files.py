"""ONNX files of torch.onnx, both exporters and every opset, through the methods.

Oracles: transformers' own, unmodified model, and the pairwise reference (tests/support/measuring).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from ctx_export.core.progress import SilentProgress
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import load_source
from ctx_export.validate.file_check import check_file
from tests.support.decoders import DECODERS, save_decoder
from tests.support.graph_files import check_strictly, nodes
from tests.support.measuring import METHODS, TOLERANCE, Oracle, measured, package
from tests.support.torch_files import Form, write

OPSETS = (
    *(Form(dynamo=True, opset=opset) for opset in (18, 20, 21, 22, 23, 24)),
    *(Form(dynamo=False, opset=opset) for opset in (14, 17)),
    Form(dynamo=True, opset=18, cached=True),
    Form(dynamo=True, opset=23, cached=True),
    Form(dynamo=False, opset=17, cached=True),
)
# Families of which no other tool's file is among the fixtures. TorchScript writes a cohere and a
# helium that onnxruntime cannot run.
SCRIPT, DYNAMO = Form(dynamo=False, opset=17), Form(dynamo=True, opset=18)
FAMILIES = {
    "cohere": DYNAMO,
    "cohere2": DYNAMO,
    "mixtral": SCRIPT,
    "qwen2_moe": SCRIPT,
    "qwen3_moe": SCRIPT,
    "glm4": DYNAMO,
    "falcon": DYNAMO,
    "exaone4": SCRIPT,
    "olmo3": DYNAMO,
    "apertus": DYNAMO,
    "glm4_moe": SCRIPT,
    "granite": DYNAMO,
    "helium": DYNAMO,
    "minimax_m2": SCRIPT,
    "nemotron": DYNAMO,
    "olmo": SCRIPT,
    "persimmon": DYNAMO,
    "stablelm": SCRIPT,
    "starcoder2": DYNAMO,
}


@dataclass
class Lab:
    """A family's checkpoint, a file made of it, read once, and its oracle."""

    family: str
    form: Form
    root: Path

    @cached_property
    def recipe(self) -> Recipe:
        checkpoint = save_decoder(DECODERS[self.family], self.root / "checkpoint")
        model = write(checkpoint, self.root / "model.onnx", self.form)
        return Recipe(model=str(model), reference=str(checkpoint))

    @cached_property
    def source(self) -> Source:
        return load_source(self.recipe)

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.family, Path(str(self.recipe.reference)))

    def package(self, method: str) -> Path:
        return package(self.source, self.recipe, method, self.root / method)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=FAMILIES)
def lab(request, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    name = request.param
    return Lab(name, FAMILIES[name], tmp_path_factory.mktemp(name))


@pytest.mark.parametrize("method", METHODS)
def test_prefill_and_decode_equal_pytorch(lab, method, support):
    largest = measured(lab.package(method), lab.oracle, method)
    support.record(lab.family, str(lab.form), method, largest)
    assert largest <= TOLERANCE


@pytest.mark.parametrize("form", OPSETS, ids=str)
def test_every_opset_of_both_exporters_is_read(form, tmp_path):
    lab = Lab("llama", form, tmp_path)
    before = nodes(Path(lab.recipe.model))
    made = lab.package("yarn")
    assert measured(made, lab.oracle, "yarn") <= TOLERANCE
    assert check_file(lab.source, tmp_path, SilentProgress()).passed
    check_strictly(made / "model.onnx", tmp_path / "checked")
    assert nodes(made / "model.onnx") <= before
