"""com.microsoft's MatMulNBits as DequantizeLinear by blocks and MatMul, weight for weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ctx_export.frontends.contrib_node import ContribNode
from ctx_export.frontends.insertion import Insertion

_INPUTS = ("A", "B", "scales", "zero_points", "g_idx", "bias")
_TYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


def lower_matmul_nbits(node: ir.Node, at: Insertion) -> ir.Value:
    """A · dequantised Bᵀ [+ bias]. The weights become signed, so that zero needs no offset, which
    engines know no other way."""
    contrib = ContribNode(node, _INPUTS)
    bits, block = contrib.integer("bits", 4), contrib.integer("block_size")
    rows, depth = contrib.integer("N"), contrib.integer("K")
    if bits not in _TYPES:
        contrib.refuse("bits", bits, "an engine reads 4 or 8 bits a weight; use --engine none")
    contrib.refuse_input("g_idx", "its blocks are not in order; quantise without act_order")
    if contrib.integer("weight_prepacked"):
        contrib.refuse("weight_prepacked", 1, "its layout is a GPU's own; export it unpacked")
    _check_symmetric(contrib, bits)
    blocks = -(-depth // block)
    weight = at.initializer(_signed(contrib, bits, (rows, blocks * block)), "weight")
    scales = _scales(contrib, at, (rows, blocks))
    x = contrib.required("A")
    dense = at.op("DequantizeLinear", [weight, scales], [rows, blocks * block],
                  axis=1, block_size=block)  # fmt: skip
    dense.type = x.type
    if blocks * block > depth:  # the last block is padded
        bounds = [at.integers([bound]) for bound in (0, depth, 1)]
        dense = at.op("Slice", [dense, *bounds], [rows, depth])
    turned = at.op("Transpose", [dense], [depth, rows], perm=[1, 0])
    shape = [*x.shape[:-1], rows] if x.shape is not None else None
    product = at.op("MatMul", [x, turned], shape)
    bias = contrib.input("bias")
    return at.op("Add", [product, bias], shape) if bias is not None else product


def _tensor(contrib: ContribNode, name: str) -> ir.TensorProtocol:
    """The tensor of an initializer; its numbers stay where they lie."""
    value = contrib.required(name)
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        contrib.refuse(name, "computed", "export the weights as initializers")
    return tensor


def _array(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """The numbers of a tensor. A package's files are hard links, which onnx-ir does not read."""
    if isinstance(tensor, ir.ExternalTensor):
        with Path(tensor.path).open("rb") as file:
            file.seek(tensor.offset or 0)
            stored = file.read(tensor.nbytes)
    else:
        stored = tensor.tobytes()
    return np.frombuffer(stored, tensor.dtype.numpy()).reshape(tensor.shape.numpy())


def _check_symmetric(contrib: ContribNode, bits: int) -> None:
    """Refuse zero points other than the middle of the range."""
    if contrib.input("zero_points") is None:
        return
    points = _array(_tensor(contrib, "zero_points"))
    middle = 1 << (bits - 1)
    if points.dtype == np.uint8 and bits == 4:
        points = np.stack([points & 15, points >> 4])  # a padded last nibble is 0
        rows = contrib.integer("N")
        odd = _tensor(contrib, "scales").size // rows % 2
        points = points.reshape(2, rows, -1)
        points = np.concatenate([points[0], points[1][:, : -1 if odd else None]], axis=1)
    if np.any(points != middle):
        contrib.refuse(
            "zero_points",
            f"values from {points.min()} to {points.max()}",
            f"an engine's weights are symmetric ({middle}); quantise symmetrically or use "
            "--engine none",
        )


def _signed(contrib: ContribNode, bits: int, shape: tuple[int, int]) -> ir.TensorProtocol:
    """The weights minus the middle of their range: its top bit flipped, in two's complement."""
    held = _tensor(contrib, "B")

    def flip() -> ir.TensorProtocol:
        packed = _array(held).reshape(-1)
        if bits == 8:
            return ir.tensor((packed ^ 0x80).view(np.int8).reshape(shape))
        return ir.PackedTensor((packed ^ 0x88), ir.DataType.INT4, shape=ir.Shape(shape))

    return ir.LazyTensor(flip, dtype=_TYPES[bits], shape=ir.Shape(shape))


def _scales(contrib: ContribNode, at: Insertion, shape: tuple[int, int]) -> ir.Value:
    """Scales [N, blocks]; a file may hold them in one row."""
    held = _tensor(contrib, "scales")
    if tuple(held.shape.numpy()) == shape:
        return contrib.required("scales")
    return at.initializer(ir.tensor(_array(held).reshape(shape)), "scales")
