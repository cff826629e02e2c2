"""ONNX files that optimum and onnxruntime-genai's builder wrote, through every method.

Oracles: the PyTorch model that a file came from, of 4-bit files with the weights that they hold
(tests/support/measuring). A float16 file is held to twice PyTorch's error in float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import load_source, run
from ctx_export.validate import validation
from tests.support.feeding import error
from tests.support.graph_files import check_strictly, nodes
from tests.support.measuring import METHODS, TOLERANCE, Oracle, measured, package
from tests.support.peer_files import UNFAITHFUL, PeerFile, peer_files

FLOOR = 2.0**-11  # what rounding the logits alone costs in float16
FILES = peer_files()
LAYERS = 2
# This GroupQueryAttention norms queries and keys inside: a layer of the rewritten graph has what
# it lacks, the two norms and four reshapes around them.
ADDED = {"qwen3/genai-fp16-cuda": 4}
FAITHFUL = [name for name in FILES if name not in UNFAITHFUL]


@dataclass
class Lab:
    """A file, read once, and the oracle of the model that it holds."""

    file: PeerFile
    root: Path

    @cached_property
    def source(self) -> Source:
        return load_source(self.recipe)

    @cached_property
    def recipe(self) -> Recipe:
        model = self.file.copied(self.root / "file")
        return Recipe(model=str(model), reference=str(self.file.checkpoint))

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.file.family, self.file.held_checkpoint(self.root / "held"))

    def package(self, method: str) -> Path:
        return package(self.source, self.recipe, method, self.root / method)

    def limit(self, method: str) -> float:
        """How far a package may be from PyTorch in float32."""
        if self.file.precision != "fp16":
            return TOLERANCE
        low = Oracle(self.file.family, self.file.checkpoint, "float16")
        if method == "streaming":  # its reference knows float32 alone; plain attention stands in
            method = "none"
        return 2 * error(low.logits(method), self.oracle.logits(method)) + FLOOR


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=FAITHFUL)
def lab(request, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    file = FILES[request.param]
    return Lab(file, tmp_path_factory.mktemp(f"{file.family}-{file.writer}"))


@pytest.mark.parametrize("method", METHODS)
def test_prefill_and_decode_equal_pytorch(lab, method, support):
    largest, limit = measured(lab.package(method), lab.oracle, method), lab.limit(method)
    if lab.file.precision != "fp16":
        support.record(lab.file.family, lab.file.writer, method, largest)
    assert largest <= limit
    assert limit < 0.05, "another method's table would pass"


def test_the_graph_is_strict_and_no_larger_than_the_file_s(lab, tmp_path):
    """Strict where the file's graph is: the builder's has operators that ONNX does not know."""
    made = lab.package("yarn") / "model.onnx"
    if is_strict(lab.file.path, tmp_path / "file"):
        check_strictly(made, tmp_path / "package")
    assert nodes(made) <= nodes(lab.file.path) + LAYERS * ADDED.get(str(lab.file), 0)


def is_strict(path: Path, place: Path) -> bool:
    try:
        check_strictly(path, place)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def test_an_optimum_file_whose_writer_dropped_the_soft_cap_fails_its_checkpoint(tmp_path):
    file = FILES["gemma2/optimum-past"]
    model = file.copied(tmp_path / "file")
    recipe = Recipe(model=str(model), reference=str(file.checkpoint))
    made = package(load_source(recipe), recipe, "yarn", tmp_path / "package")
    report = validation.run(made, file.checkpoint, budget=64)
    assert not report.passed


def test_a_builder_s_file_that_lost_the_windows_is_refused(tmp_path):
    file = FILES["mistral/genai-fp32-cpu"]
    recipe = Recipe(
        model=str(file.path), reference=str(file.checkpoint), output=tmp_path / "package"
    )
    with pytest.raises(UserError, match=r"window of 0 .* of 100 in config\.json"):
        run(recipe)
    assert not (tmp_path / "package").exists()
