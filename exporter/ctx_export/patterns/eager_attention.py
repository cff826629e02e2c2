"""Attention as plain operators: Softmax(cap(scale · q·kᵀ) + mask [, learned sink]) · v."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.patterns.match import Miss, describe, number, producer, uncast

_OF_KEY = [0, 1, 3, 2]  # what makes kᵀ of k [B,H,S,D]
_OF_TOKENS = [0, 2, 3, 1]  # of k [B,S,H,D]


@dataclass(frozen=True, slots=True, kw_only=True)
class EagerMatch:
    """q [B,H,S,D]; k [B,H,S,D], or [B,S,H,D] where `key_transposed`; v [B,H,S,D]; y their result;
    `head_sink` [H] a logit per head in the softmax that has no value."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    y: ir.Value
    scale: float
    softcap: float
    head_sink: ir.Value | None
    key_transposed: bool


def is_attention_softmax(node: ir.Node) -> bool:
    """Whether a node is a Softmax whose result weighs other computed tensors, as attention's does;
    a router's goes elsewhere."""
    return (node.domain, node.op_type) == ("", "Softmax") and _weighing(node) is not None


def match_eager(softmax: ir.Node) -> EagerMatch | Miss:
    """Match the Softmax of an attention that is written as plain operators."""
    product = _weighing(softmax)
    assert product is not None
    logits, sink = _without_sink(_shifted_back(uncast(softmax.inputs[0])))
    if isinstance(sink, Miss):
        return sink
    scores = _unmasked(logits)
    if scores is None:
        return _miss(logits, 1, "expected logits + mask, one of them made from q·k")
    value, softcap = _uncapped(scores)
    value, scale = _unscaled(value)
    multiplied = producer(value, "MatMul")
    if multiplied is None:
        return _miss(value, 2, f"expected scale · q·k, found {describe(value)}")
    q, turned = uncast(multiplied.inputs[0]), producer(uncast(multiplied.inputs[1]), "Transpose")
    order = list(turned.attributes["perm"].as_ints()) if turned is not None else None
    if turned is None or order not in (_OF_KEY, _OF_TOKENS):
        return _miss(multiplied.inputs[1], 3, "the keys are not transposed there")
    y, v = product.outputs[0], uncast(product.inputs[1])
    k = uncast(turned.inputs[0])
    assert q is not None and k is not None and v is not None
    if q.shape is None or len(q.shape) != 4:
        return _miss(q, 4, f"its query has shape {q.shape}: [batch, head, token, dim] is needed")
    return EagerMatch(
        q=q,
        k=k,
        v=v,
        y=y,
        scale=scale,
        softcap=softcap,
        head_sink=sink,
        key_transposed=order == _OF_TOKENS,
    )


def _weighing(softmax: ir.Node) -> ir.Node | None:
    """The MatMul of the weights with computed values, behind casts and the sink's removal."""
    value: ir.Value = softmax.outputs[0]
    while True:
        users = [use.node for use in value.uses()]
        if len(users) != 1:
            return None
        (user,) = users
        if user.op_type == "MatMul":
            other = user.inputs[1]
            computed = other is not None and other.producer() is not None
            return user if user.inputs[0] is value and computed else None
        if user.op_type not in ("Cast", "Slice"):
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
    if sink is None or sink.producer() is not None or sink.shape is None or len(sink.shape) != 1:
        return value, _miss(value, 1, "what joins the logits is no learned logit per head")
    return uncast(joined.inputs[0]), sink


def _unmasked(value: ir.Value | None) -> ir.Value | None:
    """The logits of logits + mask: the term that a product of computed tensors leads to."""
    total = producer(value, "Add")
    if total is None:
        return None
    for term in total.inputs:
        inner, _ = _unscaled(_uncapped(uncast(term))[0])
        if producer(inner, "MatMul") is not None:
            return uncast(term)
    return None


def _uncapped(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """x and c of c·tanh(x / c), else `value` and 0."""
    product = producer(value, "Mul")
    bent = producer(product.inputs[0], "Tanh") if product is not None else None
    divided = producer(bent.inputs[0], "Div") if bent is not None else None
    if product is None or divided is None:
        return value, 0.0
    cap = number(product.inputs[1])
    if cap is None or cap <= 0 or number(divided.inputs[1]) != cap:
        return value, 0.0
    return divided.inputs[0], cap


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """x and s of s·x, over any number of constant factors and divisors."""
    scale = 1.0
    while (node := producer(value, "Mul") or producer(value, "Div")) is not None:
        factor = number(node.inputs[1])
        if not factor:
            break
        scale = scale * factor if node.op_type == "Mul" else scale / factor
        value = node.inputs[0]
    return uncast(value), scale


def _miss(value: ir.Value | None, depth: int, reason: str) -> Miss:
    return Miss(pattern="attention", node=describe(value), reason=reason, depth=depth)
