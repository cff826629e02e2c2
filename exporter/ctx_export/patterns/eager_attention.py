"""Attention as plain operators: Softmax(cap(scale · q·kᵀ) + mask [, learned sink]) · v."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.patterns.graph_view import GraphView
from ctx_export.patterns.match import Miss, describe, number, producer, uncast
from ctx_export.patterns.probe import Extent, ProbeError, run

# What weights may pass before they meet the values: none of it changes a weight that is a number.
_AFTER_SOFTMAX = frozenset(("Cast", "Slice", "Where", "Identity", "IsNaN", "Dropout"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EagerMatch:
    """q and k, the factors of the scores without their scale; v that of the weights; y the result;
    `head_sink`, H numbers of any rank: a logit per head in the softmax that has no value."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    y: ir.Value
    scale: float
    softcap: float
    head_sink: ir.Value | None


def is_attention_softmax(node: ir.Node) -> bool:
    """Whether a node is a Softmax whose result weighs other computed tensors, as attention's does;
    a router's goes elsewhere."""
    return (node.domain, node.op_type) == ("", "Softmax") and _weighing(node) is not None


def match_eager(view: GraphView, softmax: ir.Node) -> EagerMatch | Miss:
    """Match the Softmax of an attention that is written as plain operators."""
    product = _weighing(softmax)
    assert product is not None
    logits, sink = _without_sink(_shifted_back(uncast(softmax.inputs[0])))
    if isinstance(sink, Miss):
        return sink
    scores = _Scores(view, logits)
    multiplied = scores.product()
    if isinstance(multiplied, Miss):
        return multiplied
    q, k = (scores.unscaled(value) for value in multiplied.inputs)
    y, v = product.outputs[0], uncast(product.inputs[1])
    assert q is not None and k is not None and v is not None
    return EagerMatch(
        q=q, k=k, v=v, y=y, scale=scores.scale, softcap=scores.softcap, head_sink=sink
    )


def _weighing(softmax: ir.Node) -> ir.Node | None:
    """The MatMul of the weights with computed values, behind casts, the sink's removal and what
    makes rows of no number 0."""
    value: ir.Value = softmax.outputs[0]
    while True:
        users = {use.node for use in value.uses()}
        products = {node for node in users if node.op_type == "MatMul"}
        if users - products and all(node.op_type in _AFTER_SOFTMAX for node in users - products):
            users = {node for node in users if node.op_type != "IsNaN"}
        if len(users) != 1:
            return None
        (user,) = users
        if user.op_type == "MatMul":
            other = user.inputs[1]
            computed = other is not None and other.producer() is not None
            return user if user.inputs[0] is value and computed else None
        if user.op_type not in _AFTER_SOFTMAX:
            return None
        value = user.outputs[0]


def _shifted_back(value: ir.Value | None) -> ir.Value | None:
    """x of x - max(x), which leaves a softmax as it is."""
    shift = producer(value, "Sub")
    if shift is None:
        return value
    largest = producer(shift.inputs[1], "ReduceMax")
    same = largest is not None and largest.inputs[0] is shift.inputs[0]
    return uncast(shift.inputs[0]) if same else value


def _without_sink(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | Miss | None]:
    """Logits without the last column, and that column's logit per head."""
    joined = producer(value, "Concat")
    if joined is None or len(joined.inputs) != 2:
        return value, None
    sink = joined.inputs[1]
    while sink is not None and (node := sink.producer()) is not None:
        if node.op_type not in ("Expand", "Reshape", "Unsqueeze", "Cast"):
            break
        sink = node.inputs[0]
    if sink is None or sink.producer() is not None or not _is_row(sink.shape):
        return value, _miss(value, 1, "what joins the logits is no learned logit per head")
    return uncast(joined.inputs[0]), sink


def _is_row(shape: ir.Shape | None) -> bool:
    """Whether a shape is that of one fixed number of elements in a row."""
    return shape is not None and shape.is_static() and sum(s != 1 for s in shape.numpy()) <= 1


class _Scores:
    """The way from masked logits back to the product of queries and keys, and what is read on it:
    factors multiply to `scale`, c·tanh(x / c) is the soft cap c."""

    def __init__(self, view: GraphView, logits: ir.Value | None) -> None:
        self._view, self._value = view, logits
        self.scale, self.softcap = 1.0, 0.0

    def product(self) -> ir.Node | Miss:
        """The MatMul of queries and keys."""
        while True:
            value = self._value = uncast(self._value)
            node = value.producer() if value is not None else None
            if node is None or node.domain != "":
                return _miss(value, 2, f"expected scale · q·k, found {describe(value)}")
            if node.op_type == "MatMul":
                return node
            behind = self._behind(node)
            if isinstance(behind, Miss):
                return behind
            self._value = behind

    def _behind(self, node: ir.Node) -> ir.Value | Miss | None:
        """The scores that `node` masks, scales or caps."""
        value = node.outputs[0]
        hidden = [v for v in node.inputs if v is not None and v in self._view.hidden]
        if node.op_type in ("Add", "Where", "Max"):
            if len(hidden) == 1:
                return hidden[0]
            return _miss(value, 2, "expected scores and a mask, found two computed tensors")
        if node.op_type == "Tanh":
            if self.softcap or self.scale <= 0 or self.scale == 1.0:
                return _miss(value, 2, f"a soft cap of {self.scale:g} is not understood")
            self.softcap = self.scale
            return node.inputs[0]
        if node.op_type in ("Mul", "Div"):
            return self._unscaled_once(node, hidden)
        if node.op_type in ("Reshape", "Identity"):
            return node.inputs[0]
        return _miss(value, 2, f"expected scale · q·k, found {describe(value)}")

    def _unscaled_once(self, node: ir.Node, hidden: list[ir.Value]) -> ir.Value | Miss:
        divides = node.op_type == "Div"
        others = [value for value in node.inputs if value not in self._view.hidden]
        factor = scalar_of(self._view, others[0]) if len(hidden) == len(others) == 1 else None
        if not factor or (divides and node.inputs[0] not in hidden):
            return _miss(node.outputs[0], 2, "the scores are not scaled by one number")
        self.scale *= 1 / factor if divides else factor
        return hidden[0]

    def unscaled(self, value: ir.Value | None) -> ir.Value | None:
        """A factor of the scores without numbers that scale it."""
        while (node := producer(value, "Mul") or producer(value, "Div")) is not None:
            hidden = [v for v in node.inputs if v is not None and v in self._view.hidden]
            behind = self._unscaled_once(node, hidden)
            if isinstance(behind, Miss):
                break
            value = uncast(behind)
        return uncast(value)


def scalar_of(view: GraphView, value: ir.Value | None) -> float | None:
    """The one number that `value` always holds, constant or computed from fixed dimensions."""
    held = number(value)
    if held is not None or value is None or value.producer() is None:
        return held
    found = []
    for extent in (Extent(batch=2, tokens=7), Extent(batch=3, tokens=12)):
        try:
            (array,) = run(view, [value], {}, extent).values
        except ProbeError:
            return None
        if array.size != 1:
            return None
        found.append(float(array.reshape(-1)[0]))
    return found[0] if found[0] == found[1] else None


def _miss(value: ir.Value | None, depth: int, reason: str) -> Miss:
    return Miss(pattern="attention", node=describe(value), reason=reason, depth=depth)
