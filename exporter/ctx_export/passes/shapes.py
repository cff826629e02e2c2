"""Fixed dimensions that a file leaves open: what keeps its size while batch and tokens change.

Other tools compute shapes with operators, and inference over symbols gives up at the first
Reshape to -1. At two concrete sizes everything folds; dimensions that agree are fixed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import onnx
import onnx_ir as ir

from ctx_export.passes.folding import MOST_ELEMENTS, may_fold

_SIZES = ((2, 7, 5), (3, 11, 13))  # batch, new tokens, cached tokens
_NAMES: dict[tuple[int | None, int | None], str] = {(2, 3): "batch", (7, 11): "tokens"}


def settle_shapes(model: ir.Model) -> None:
    """Give the values of `model` the types and fixed dimensions that follow from its inputs, in
    place, and their other dimensions the names batch and tokens where they are that; one that
    stays open keeps the name it has."""
    first, second = (_shapes_at(model, sizes) for sizes in _SIZES)
    for node in model.graph:
        for value in node.outputs:
            name = str(value.name)
            if name in first and name in second:
                _settle(value, first[name], second[name])


_Typed = tuple[ir.DataType | None, tuple[int | None, ...]]


def _settle(value: ir.Value, first: _Typed, second: _Typed) -> None:
    (dtype, one), (_, other) = first, second
    if len(one) != len(other):
        return
    if value.dtype is None and dtype is not None:
        value.dtype = dtype
    own = value.shape if value.shape is not None and len(value.shape) == len(one) else None
    sizes: list[int | str] = []
    for axis, (a, b) in enumerate(zip(one, other, strict=True)):
        held = None if own is None else own[axis]
        if a is not None and a == b:
            sizes.append(a)
        elif (a, b) in _NAMES:
            sizes.append(_NAMES[a, b])
        elif isinstance(held, ir.SymbolicDim) and held.value is not None:
            sizes.append(held.value)
        else:
            sizes.append(f"{value.name}.{axis}")
    value.shape = ir.Shape(sizes)


def _shapes_at(model: ir.Model, sizes: tuple[int, int, int]) -> Mapping[str, _Typed]:
    """Type and shape of every value that a copy of `model` at these sizes still has."""
    import onnxscript.optimizer

    copy = model.clone()
    batch, tokens, cached = sizes
    for value in copy.graph.inputs:
        if value.shape is None:
            continue
        past = value.name != "input_ids" and len(value.shape) > 2
        value.shape = ir.Shape(
            size if isinstance(size, int) else _size(axis, past, sizes)
            for axis, size in enumerate(value.shape)
        )
        if value.name is not None and "mask" in value.name and len(value.shape) == 2:
            has_past = any(len(v.shape) > 2 for v in copy.graph.inputs if v.shape is not None)
            value.shape = ir.Shape((batch, tokens + cached * has_past))
    for node in copy.graph:
        known = onnx.defs.has(node.op_type, node.domain)
        for value in node.outputs:
            value.shape = None if known else _at_sizes(value.shape, sizes)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    onnxscript.optimizer.optimize_ir(copy, output_size_limit=MOST_ELEMENTS, should_fold=may_fold)
    found: dict[str, _Typed] = {}
    for node in copy.graph:
        for value in node.outputs:
            if value.name is not None and value.shape is not None:
                found[value.name] = (
                    value.dtype,
                    tuple(size if isinstance(size, int) else None for size in value.shape),
                )
    return found


def _at_sizes(shape: ir.Shape | None, sizes: tuple[int, int, int]) -> ir.Shape | None:
    """The shape that a file states, for operators that inference does not know."""
    if shape is None:
        return None
    named = {"batch": sizes[0], "tokens": sizes[1]}
    return ir.Shape(named.get(str(size), size) for size in shape)


def _size(axis: int, past: bool, sizes: tuple[int, int, int]) -> int:
    batch, tokens, cached = sizes
    return batch if axis == 0 else cached if past else tokens
