"""From what an attention reads back to what its projection gave: the operators in between.

An attention reads queries that are rotated, and keys that are rotated, joined with cached ones
and repeated over grouped heads. Whatever operators do that, all of them move numbers or multiply
them by tables of positions, and all the ways through them start at one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.patterns.graph_view import GraphView
from ctx_export.patterns.match import Miss, describe, dimension, number

_MOVES = frozenset(
    ("Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND")
    + ("Identity", "Neg", "Pad", "Reshape", "ScatterElements", "ScatterND", "Slice", "Split")
    + ("Squeeze", "Tile", "Transpose", "Unsqueeze")
)
_PRODUCTS = frozenset(("Mul", "Div", "MatMul", "Einsum"))
_SUMS = frozenset(("Add", "Sub", "Sum"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """What lies between `source` [B,H,S,D], or [B,S,H,D] where `transposed`, and the value that
    was traced back; `turns` whether some of it multiplies by what follows the positions."""

    source: ir.Value
    transposed: bool
    turns: bool


def trace_back(view: GraphView, value: ir.Value) -> Region | Miss:
    """The source of `value` behind all products with positions, cached tokens and repeated heads:
    the nearest tensor of four dimensions through which all ways to `value` lead."""
    walk = _Walk(view, value)
    events = [node for node in walk.nodes if walk.is_event(node)]
    left = set(events)
    turns = any(walk.turns(node) for node in events)
    refused: ir.Value | None = None
    for candidate, passed in walk.dominators():
        left -= passed
        if left:
            refused = candidate
            continue
        transposed = _token_axis(candidate)
        if transposed is not None:
            return Region(source=candidate, transposed=transposed == 1, turns=turns)
    return _miss(view, walk, left, refused or value)


def _token_axis(value: ir.Value) -> int | None:
    """1 of [B,S,H,D], 2 of [B,H,S,D]; None where `value` is neither."""
    if value.shape is None or len(value.shape) != 4 or dimension(value, 3) is None:
        return None
    fixed = [isinstance(size, int) for size in value.shape]
    if fixed[1] == fixed[2]:
        return None
    return 2 if fixed[1] else 1


class _Walk:
    """The nodes that can be passed from `value` towards the projections."""

    def __init__(self, view: GraphView, value: ir.Value) -> None:
        self._view, self._value = view, value
        self.nodes: dict[ir.Node, None] = {}
        self.ends: list[ir.Value] = []
        seen, pending = {value}, [value]
        while pending:
            current = pending.pop()
            node = current.producer()
            if node is None or not self._passes(node):
                self.ends.append(current)
                continue
            self.nodes[node] = None
            for behind in self._behind(node):
                if behind not in seen:
                    seen.add(behind)
                    pending.append(behind)

    def _hidden(self, node: ir.Node) -> list[ir.Value]:
        return [v for v in node.inputs if v is not None and v in self._view.hidden]

    def _behind(self, node: ir.Node) -> list[ir.Value]:
        """What a node makes its result of, without cached tokens."""
        return [value for value in self._hidden(node) if not value.is_graph_input()]

    def _passes(self, node: ir.Node) -> bool:
        """Whether a node moves numbers, adds moved ones or multiplies them by positions."""
        if node.domain != "":
            return False
        hidden = self._hidden(node)
        if node.op_type in _MOVES or node.op_type == "RotaryEmbedding":
            return True
        if node.op_type in _SUMS:
            return all(value in hidden for value in node.inputs)
        if node.op_type not in _PRODUCTS or len(hidden) != 1:
            return False
        return self.turns(node) or self._negates(node)

    def _negates(self, node: ir.Node) -> bool:
        factors = [number(value) for value in node.inputs if value not in self._view.hidden]
        return node.op_type in ("Mul", "Div") and factors in ([1.0], [-1.0])

    def turns(self, node: ir.Node) -> bool:
        """Whether a node multiplies by what follows the positions."""
        if node.op_type == "RotaryEmbedding":
            return True
        return node.op_type in _PRODUCTS and any(
            value in self._view.positional for value in node.inputs
        )

    def is_event(self, node: ir.Node) -> bool:
        """Whether a node has to lie between the source and the attention."""
        if node.op_type in ("Expand", "Tile"):
            return True
        cached = any(value.is_graph_input() for value in self._hidden(node))
        return cached or self.turns(node)

    def dominators(self) -> Iterator[tuple[ir.Value, set[ir.Node]]]:
        """Every value that all ways to the traced one pass, nearest first, with the nodes passed
        since the last."""
        order, nodes = self._view.order, self.nodes
        frontier, passed = {self._value}, set[ir.Node]()
        while frontier:
            if len(frontier) == 1:
                yield next(iter(frontier)), passed
                passed = set()
            node = max(
                (v.producer() for v in frontier if v.producer() in nodes),
                key=lambda producer: order[producer],  # type: ignore[index]
                default=None,
            )
            if node is None:
                return
            frontier.difference_update(node.outputs)
            frontier.update(self._behind(node))
            passed.add(node)


def _miss(view: GraphView, walk: _Walk, left: set[ir.Node], stopped: ir.Value) -> Miss:
    """Why a walk found no source."""
    if left:
        node = max(left, key=lambda event: view.order[event])
        ends = ", ".join(describe(end) for end in walk.ends[:3])
        reason = (
            f"what {node.op_type} ({node.outputs[0].name}) takes does not come from one tensor "
            f"with the rest, but from {ends}"
        )
        return Miss(
            pattern="rotary embedding",
            node=describe(stopped),
            reason=reason,
            depth=len(walk.nodes),
        )
    shape = stopped.shape
    return Miss(
        pattern="rotary embedding",
        node=describe(stopped),
        reason=f"its shape {shape} is neither [batch, head, token, dim] nor [batch, token, head, "
        "dim] with fixed heads and dim",
        depth=len(walk.nodes),
    )
