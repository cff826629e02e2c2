"""ONNX files with quantised products: 4-bit weights and 8-bit products behind Q/DQ, MatMulInteger.

Oracles: PyTorch with what the 4-bit weights stand for, under every method; where activations are
rounded too, the file itself in a stock onnxruntime within the trained context.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from ctx_export.core.progress import SilentProgress
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import load_source
from ctx_export.validate.file_check import check_file
from tests.support import quantised_files, tiny
from tests.support.graph_files import check_strictly
from tests.support.measuring import METHODS, TOLERANCE, Oracle, measured, package
from tests.support.torch_files import Form, write

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint and model.onnx."""
    root = tmp_path_factory.mktemp("decoder")
    checkpoint = tiny.save(root / "checkpoint")
    write(checkpoint, root / "model.onnx", Form(dynamo=True, opset=18))
    return root


@pytest.fixture(scope="module")
def four_bits(decoder: Path) -> tuple[Recipe, Source, Oracle]:
    model = quantised_files.four_bit_weights(decoder / "model.onnx", decoder / "int4.onnx")
    checkpoint = quantised_files.dequantised_checkpoint(
        model, decoder / "checkpoint", decoder / "held"
    )
    recipe = Recipe(model=str(model), reference=str(checkpoint))
    return recipe, load_source(recipe), Oracle("int4", checkpoint)


@pytest.mark.parametrize("method", METHODS)
def test_four_bit_weights_stay_and_agree_with_pytorch(four_bits, method, tmp_path):
    recipe, source, oracle = four_bits
    made = package(source, recipe, method, tmp_path / "out")
    assert measured(made, oracle, method) <= TOLERANCE
    held = onnx.load(made / "model.onnx", load_external_data=False).graph
    kinds = [tensor.data_type for tensor in held.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 15  # 7 a layer and the vocabulary's
    check_strictly(made / "model.onnx", tmp_path / "checked")


def test_rounded_products_compute_what_their_files_do(decoder, tmp_path):
    model = decoder / "model.onnx"
    made = (
        quantised_files.eight_bit_products(model, decoder / "int8.onnx", tiny.VOCAB),
        quantised_files.eight_bit_weights(model, decoder / "dynamic.onnx"),
    )
    for file in made:
        recipe = Recipe(model=str(file), reference=str(decoder / "checkpoint"))
        section = check_file(load_source(recipe), tmp_path, SilentProgress())
        assert section.largest and section.passed, section.remark()
