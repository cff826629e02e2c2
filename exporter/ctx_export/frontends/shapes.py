"""Shapes behind operators that ONNX's own inference does not know, where a file does not say them.

Files that onnxruntime's optimizer wrote hold no shapes, and inference stops at the first operator
of com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from ctx_export.frontends.insertion import Dimension
from ctx_export.patterns.match import constant, producer, scalar

Sizes = list[Dimension]


def infer_shapes(node: ir.Node) -> None:
    """Give the outputs of `node` types and shapes where they have none and a rule tells them."""
    index = 1 if node.op_type == "Where" else 0
    first = node.inputs[index] if index < len(node.inputs) else None
    if first is None or all(value.shape is not None for value in node.outputs):
        return
    rule = _RULES.get(node.op_type)
    sizes = list(rule(node)) if rule is not None else []
    for place, value in enumerate(node.outputs):
        known = sizes[place] if place < len(sizes) else None
        if value.type is None and place in _TYPED_LIKE_INPUT.get(node.op_type, ()):
            value.type = first.type
        elif node.op_type == "Shape":
            value.type = ir.TensorType(ir.DataType.INT64)
        if value.shape is None and known is not None and value.type is not None:
            value.shape = ir.Shape(known)


def _sizes(node: ir.Node, index: int) -> Sizes | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    if value.shape is not None:
        return list(value.shape)
    held = constant(value)
    return list(held.shape) if held is not None else None


def _like_input(node: ir.Node) -> list[Sizes | None]:
    return [_sizes(node, 0)]


def _like_input_and_sum(node: ir.Node) -> list[Sizes | None]:
    return [_sizes(node, 0), None, None, _sizes(node, 0)]


def _broadcast(node: ir.Node) -> list[Sizes | None]:
    start = len(node.inputs) - 2  # Where has a condition in front
    one, other = _sizes(node, start), _sizes(node, start + 1)
    if one is None or other is None:
        return []
    rank = max(len(one), len(other))
    padded: list[Sizes] = [[*[1] * (rank - len(sizes)), *sizes] for sizes in (one, other)]
    return [[_wider(a, b) for a, b in zip(*padded, strict=True)]]


def _wider(one: Dimension, other: Dimension) -> Dimension:
    """The size that two dimensions broadcast to."""
    if one == 1 or (isinstance(other, int) and other != 1):
        return other
    return one


def _product(node: ir.Node) -> list[Sizes | None]:
    left, right = _sizes(node, 0), _sizes(node, 1)
    if node.op_type == "MatMulNBits":
        right = [None, node.attributes["N"].as_int()]
    if left is None or right is None or len(left) < 2 or not 2 <= len(right) <= len(left):
        return []
    return [[*left[:-1], right[-1]]]


def _gathered(node: ir.Node) -> list[Sizes | None]:
    table, indices = _sizes(node, 0), _sizes(node, 1)
    if table is None or indices is None or node.attributes.get_int("axis", 0) != 0:
        return []
    return [[*indices, *table[1:]]]


def _counted(node: ir.Node) -> list[Sizes | None]:
    sizes = _sizes(node, 0)
    start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
    return [] if sizes is None else [[len(sizes[start:end])]]


def _unsqueezed(node: ir.Node) -> list[Sizes | None]:
    sizes, axes = _sizes(node, 0), constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if sizes is None or axes is None:
        return []
    rank = len(sizes) + axes.size
    for axis in sorted(int(axis) % rank for axis in axes.reshape(-1)):
        sizes.insert(axis, 1)
    return [sizes]


def _transposed(node: ir.Node) -> list[Sizes | None]:
    sizes = _sizes(node, 0)
    if sizes is None or "perm" not in node.attributes:
        return []
    return [[sizes[axis] for axis in node.attributes["perm"].as_ints()]]


def _reshaped(node: ir.Node) -> list[Sizes | None]:
    """The target's sizes; a 0 in it is the input's own, a -1 what is left of its last one."""
    before, target = _sizes(node, 0), _target(node.inputs[1])
    if target is None:
        return []
    sizes = list(target)
    for axis, size in enumerate(target):
        if size == 0 and not node.attributes.get_int("allowzero", 0):
            sizes[axis] = before[axis] if before is not None and axis < len(before) else None
        elif size == -1:
            sizes[axis] = _rest(before, target, axis)
    return [sizes]


def _target(value: ir.Value | None) -> Sizes | None:
    """The dimensions that a shape holds; None for those that are not traced to a tensor's."""
    held = constant(value)
    if held is not None:
        return [int(size) for size in held.reshape(-1)]
    joined = producer(value, "Concat")
    if joined is None:
        return None
    sizes: Sizes = []
    for part in joined.inputs:
        held = constant(part)
        numbers = [int(n) for n in held.reshape(-1)] if held is not None else _dimensions(part)
        if numbers is None:
            return None
        sizes += numbers
    return sizes


def _dimensions(part: ir.Value | None) -> Sizes | None:
    """The dimensions of a tensor that `part` holds, None each where they are computed."""
    if part is None or part.shape is None or not isinstance(part.shape[0], int):
        return None
    value: ir.Value | None = part
    while (moved := producer(value, "Unsqueeze") or producer(value, "Squeeze")) is not None:
        value = moved.inputs[0]
    chosen = producer(value, "Gather")
    counted = producer(chosen.inputs[0] if chosen is not None else value, "Shape")
    sizes = _sizes(counted, 0) if counted is not None else None
    if counted is None or sizes is None:
        return [None] * part.shape[0]
    start, end = (counted.attributes.get_int(name, None) for name in ("start", "end"))
    index = scalar(chosen.inputs[1]) if chosen is not None else None
    if chosen is None:
        return sizes[start:end]
    return [sizes[start:end][index]] if index is not None else [None] * part.shape[0]


def _rest(before: Sizes | None, target: Sizes, axis: int) -> int | None:
    """What a -1 behind batch and tokens stands for, where only the last dimension is divided."""
    if before is None or len(before) != 3 or axis < 2 or not isinstance(before[2], int):
        return None
    if not all(map(_is_same, target[:2], before[:2])):
        return None
    divisor = 1
    for other, size in enumerate(target[2:], start=2):
        if other != axis:
            if not isinstance(size, int) or size < 1:
                return None
            divisor *= size
    return before[2] // divisor


def _is_same(size: Dimension, own: Dimension) -> bool:
    """Whether a target's size leaves the dimension `own` as it is."""
    if isinstance(own, ir.SymbolicDim) and own.value is None:
        return size == 0
    return size == 0 or size == own


_SAME = (
    "BiasGelu", "Cast", "Clip", "DequantizeLinear", "FastGelu", "Gelu", "Identity",
    "LayerNormalization", "Neg", "QuantizeLinear", "QuickGelu", "RMSNormalization",
    "RotaryEmbedding", "Sigmoid", "SimplifiedLayerNormalization", "Softmax", "Tanh",
)  # fmt: skip
_SKIPPING = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_ARITHMETIC = ("Add", "Div", "Mul", "Pow", "Sub", "Where")
_PRODUCTS = ("MatMul", "MatMulNBits")
_RULES: dict[str, Callable[[ir.Node], Sequence[Sizes | None]]] = {
    **dict.fromkeys(_SAME, _like_input),
    **dict.fromkeys(_SKIPPING, _like_input_and_sum),
    **dict.fromkeys(_ARITHMETIC, _broadcast),
    **dict.fromkeys(_PRODUCTS, _product),
    "Gather": _gathered,
    "Reshape": _reshaped,
    "Shape": _counted,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}
_MOVING = ("Concat", "Expand", "Slice", "Squeeze")
_OTHER_TYPE = {"Cast", "DequantizeLinear", "QuantizeLinear", "Shape"}
# Outputs of the type of the first input, or of the second one of Where; mean and variance of a
# norm have a type of their own.
_TYPED_LIKE_INPUT = {
    **dict.fromkeys({*_RULES, *_MOVING} - _OTHER_TYPE, (0,)),
    **dict.fromkeys(_SKIPPING, (0, 3)),
}
