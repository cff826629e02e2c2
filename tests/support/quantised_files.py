"""ONNX files whose products are quantised, as onnxruntime's own tools write them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

BLOCK = 16  # weights that share a scale


def four_bit_weights(model: Path, path: Path) -> Path:
    """MatMul weights as blocks of int4 behind DequantizeLinear (opset 21)."""
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    how = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, quant_format=QuantFormat.QDQ
    )
    tool = MatMulNBitsQuantizer(
        onnx.load(model), block_size=BLOCK, is_symmetric=True, algo_config=how
    )
    tool.process()
    onnx.save(tool.model.model, path)
    return path


def eight_bit_products(model: Path, path: Path, vocab: int) -> Path:
    """MatMuls with int8 weights and calibrated int8 activations between Q and DQ."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Texts(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = 2

        def get_next(self) -> dict[str, Any] | None:
            self.left -= 1
            ids = np.random.default_rng(self.left + 1).integers(0, vocab, (1, 20))
            places = np.arange(20)[None]
            feed = {"input_ids": ids, "attention_mask": ids * 0 + 1, "position_ids": places}
            return feed if self.left >= 0 else None

    quantize_static(
        str(model),
        str(path),
        Texts(),
        quant_format=QuantFormat.QDQ,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
    )
    return path


def eight_bit_weights(model: Path, path: Path) -> Path:
    """MatMulInteger with activations rounded by their own largest."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(model), str(path), weight_type=QuantType.QInt8)
    return path


def dequantised_checkpoint(model: Path, checkpoint: Path, place: Path) -> Path:
    """A copy of `checkpoint` whose matrices are those that the DequantizeLinears of `model` give;
    which is which, the numbers tell."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(checkpoint, place)
    path = place / "model.safetensors"
    tensors = load_file(path)
    for matrix in dequantised(onnx.load(model)):
        near = {
            name: float(np.abs(matrix.T - held).max())
            for name, held in tensors.items()
            if held.shape == matrix.T.shape
        }
        name = min(near, key=lambda key: near[key])
        tensors[name] = np.ascontiguousarray(matrix.T)
    save_file(tensors, path, {"format": "pt"})
    return place


def dequantised(model: onnx.ModelProto) -> Iterator[np.ndarray]:
    """The float32 matrices [K,N] of weights in blocks along K: number times its block's scale."""
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in held:
            continue
        attributes = {entry.name: entry.i for entry in node.attribute}
        assert (attributes["axis"], attributes["block_size"]) == (0, BLOCK)
        assert len(node.input) == 2 or not held[node.input[2]].astype(np.float32).any()
        numbers, scales = (held[name].astype(np.float32) for name in node.input[:2])
        yield numbers * np.repeat(scales, BLOCK, axis=0)[: len(numbers)]
