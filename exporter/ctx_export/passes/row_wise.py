"""What computes row by row, such as a norm per head, computes the same on [B,S,H,D]."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.patterns.match import constant
from ctx_export.patterns.rotary import HEADS_FIRST

_ELEMENTWISE = frozenset(
    ("Abs", "Add", "Cast", "Div", "Identity", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub")
)
_NORMS = frozenset(("LayerNormalization", "RMSNormalization"))
_REDUCTIONS = frozenset(("ReduceMean", "ReduceSum", "ReduceL2"))
_ROW_AXES = (-1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowWise:
    """A value [B,H,S,D], the swap of heads and tokens behind it and the nodes between them."""

    value: ir.Value
    swap: ir.Node
    nodes: tuple[ir.Node, ...]


def swaps_heads(node: ir.Node | None) -> bool:
    """Whether a node swaps the middle two of four axes."""
    if node is None or node.domain or node.op_type != "Transpose":
        return False
    return tuple(node.attributes.get_ints("perm", ())) == tuple(HEADS_FIRST)


def trace(value: ir.Value, reader: ir.Node) -> RowWise | None:
    """What lies between `value` and a swap of heads and tokens, if that is row by row and nothing
    but `reader` reads any of it."""
    nodes: list[ir.Node] = []
    swaps: list[ir.Node] = []
    open_values = [value]
    while open_values:
        node = open_values.pop().producer()
        if node is None:
            return None
        if swaps_heads(node):
            swaps += [node] * (node not in swaps)
        elif node not in nodes:
            rows = _row_operands(node)
            if rows is None:
                return None
            nodes.append(node)
            open_values += rows
    made = [made for node in nodes for made in node.outputs]
    readers = {use.node for value in made for use in value.uses()}
    if len(swaps) != 1 or not readers <= {reader, *nodes}:
        return None
    return RowWise(value=value, swap=swaps[0], nodes=tuple(nodes))


def swap_later(found: RowWise) -> None:
    """Compute `found` on [B,S,H,D], in place: its value has tokens before heads from then on."""
    before, after = found.swap.inputs[0], found.swap.outputs[0]
    for node in found.nodes:
        for index, given in enumerate(node.inputs):
            if given is after:
                node.replace_input_with(index, before)
        for made in node.outputs:
            if made.shape is not None and len(made.shape) == len(HEADS_FIRST):
                made.shape = ir.Shape([made.shape[axis] for axis in HEADS_FIRST])


def _row_operands(node: ir.Node) -> list[ir.Value] | None:
    """Of the inputs those that hold rows, or None where a node mixes rows or knows their place."""
    if node.domain or any(len(_shape(made)) != 4 for made in node.outputs):
        return None
    given = [value for value in node.inputs if value is not None]
    rows = [value for value in given if len(_shape(value)) == 4]
    others = [value for value in given if value not in rows]
    if any(value.shape is None or len(value.shape) > 1 for value in others):
        return None
    if node.op_type in _ELEMENTWISE:
        return rows
    if node.op_type in _NORMS:
        is_of_rows = node.attributes.get_int("axis", -1) in _ROW_AXES and rows == given[:1]
        return rows if is_of_rows else None
    if node.op_type in _REDUCTIONS and len(given) == 2:
        axes = constant(given[1])
        kept = node.attributes.get_int("keepdims", 1)
        return rows if kept and axes is not None and axes.tolist() in ([-1], [3]) else None
    return None


def _shape(value: ir.Value) -> ir.Shape | tuple[()]:
    return value.shape if value.shape is not None else ()
