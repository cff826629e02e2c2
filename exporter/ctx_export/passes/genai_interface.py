"""onnxruntime-genai's inputs and outputs in place of a package's own.

The caller gives `attention_mask` [B,T] over all columns so far, of which the last S are those of
`input_ids` [B,S]. Rows may be padded on either side, and a mask may have holes where an earlier
call was padded: a row's tokens are its ones, so

    new[b] = Σ mask[b, T−S:]      seen[b] = Σ mask[b] − new[b]

and positions are seen + 0 … new − 1, as in every package. The only logits are those after a row's
last new token, [B,1,vocab]: onnxruntime-genai reads no others.

Its caches come in two forms, and one graph serves both. A shared buffer has slots for the longest
sequence and is past and present at once: attention writes into it in place. Otherwise present has
T slots and past as many as the call before, or none: attention gets past with empty slots behind
it. Which one a call has is seen from past's slots, and one `If` a layer holds attention twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from ctx_export.core.manifest import TensorInfo
from ctx_export.core.plan import is_input
from ctx_export.ops.spec import DOMAIN, OPERATORS

_LAST = np.iinfo(np.int64).max
_PASTS = ("past_key", "past_value")


def set_genai_interface(model: ir.Model, io: Sequence[TensorInfo]) -> None:
    """Change a package's verified graph, in place, to the tensors of `io_contract.genai_io`."""
    graph = model.graph
    given = {value.name: value for value in graph.inputs}
    first = next(iter(graph))
    tape = _Tape()
    mask = ir.Value(
        name="attention_mask",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape(("batch", "total")),
    )
    _replace_counts(tape, given, mask)
    total = tape.size(mask, 1)
    grows = tape.op("Greater", total, tape.size(given["past_key_values.0.key"], 2))
    grows = tape.op("Squeeze", grows)
    graph.insert_before(first, tape.nodes)
    for node in [node for node in graph if _is_attention(node)]:
        _attend_either_way(graph, node, grows, total)
    values = {**given, "attention_mask": mask}
    graph.inputs.clear()
    graph.inputs.extend(values[tensor.name] for tensor in io if is_input(tensor))
    ends = {value.name: value for value in graph.outputs}
    for tensor in io:
        value = values[tensor.name] if is_input(tensor) else ends[tensor.name]
        value.shape = ir.Shape(tensor.shape)
    common_passes.LiftConstantsToInitializersPass()(model)


def _is_attention(node: ir.Node) -> bool:
    return node.domain == DOMAIN and "past_key" in OPERATORS[node.op_type].inputs


class _Tape(ir.tape.Tape):
    """Nodes of standard operators with names of their own."""

    def __init__(self, prefix: str = "genai") -> None:
        super().__init__()
        self._prefix, self._count = prefix, 0

    def op(  # type: ignore[override]
        self, op_type: str, *inputs: ir.Value | None, **attributes: int
    ) -> ir.Value:
        value = super().op(op_type, list(inputs), attributes or None)
        value.name = f"{self._prefix}.{op_type.lower()}.{self._count}"
        self._count += 1
        return value

    def numbers(self, *numbers: int) -> ir.Value:
        """A constant [N] int64."""
        value = super().op("Constant", [], {"value": ir.tensor(np.array(numbers, np.int64))})
        value.name = f"{self._prefix}.constant.{self._count}"
        value.type = ir.TensorType(ir.DataType.INT64)
        self._count += 1
        return value

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """One size of a tensor, [1]."""
        return self.op("Shape", value, start=axis, end=axis + 1)


def _replace_counts(tape: _Tape, given: dict[str | None, ir.Value], mask: ir.Value) -> None:
    """Make seen, new, logit_rows and the order of the tokens from the mask."""
    ids = given["input_ids"]
    readers = list(ids.uses())
    rows, axis = tape.size(ids, 1), tape.numbers(1)
    start = tape.op("Neg", rows)
    recent = tape.op("Slice", mask, start, tape.numbers(_LAST), axis)
    new = tape.op("ReduceSum", recent, axis, keepdims=0)
    seen = tape.op("Sub", tape.op("ReduceSum", mask, axis, keepdims=0), new)
    last = tape.op("Max", tape.op("Sub", new, tape.numbers(1)), tape.numbers(0))
    # Tokens come first: what stands before a row's first one goes behind its last.
    before = tape.op("ArgMax", recent, axis=1, keepdims=1)
    zero, one = (tape.op("Squeeze", tape.numbers(number)) for number in (0, 1))
    index = tape.op("Range", zero, tape.op("Squeeze", rows), one)
    index = tape.op("Mod", tape.op("Add", index, before), rows)
    tokens = tape.op("GatherElements", ids, index, axis=1)
    tokens.type, tokens.shape = ids.type, ids.shape
    made = {"seen": seen, "new": new, "logit_rows": tape.op("Unsqueeze", last, axis)}
    for name, value in made.items():
        old = given[name]
        value.type, value.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, value)
    for use in readers:
        if use.node.op_type != "Shape":
            use.node.replace_input_with(use.idx, tokens)


def _attend_either_way(graph: ir.Graph, node: ir.Node, grows: ir.Value, total: ir.Value) -> None:
    """`node` over past as it is, or with slots behind it up to `total` where it has too few."""
    names = OPERATORS[node.op_type].inputs
    longer = _Tape(f"{node.name or node.outputs[0].name}.longer")
    inputs = list(node.inputs)
    for name in _PASTS:
        past = inputs[names.index(name)]
        assert past is not None
        inputs[names.index(name)] = _lengthened(longer, past, total)
    branches = {
        "then_branch": _branch(node, inputs, longer, "longer"),
        "else_branch": _branch(node, node.inputs, _Tape(), "shared"),
    }
    chosen = ir.node("If", [grows], branches, num_outputs=len(node.outputs))
    graph.insert_before(node, chosen)
    for old, value in zip(node.outputs, chosen.outputs, strict=True):
        value.type, value.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        value.name, old.name = old.name, f"{old.name}.native"
    graph.remove(node, safe=True)


def _lengthened(tape: _Tape, past: ir.Value, total: ir.Value) -> ir.Value:
    """past [B,H,C,D] with zeros behind it: [B,H,total,D]."""
    spare = tape.op("Sub", total, tape.size(past, 2))
    shape = tape.op(
        "Concat", tape.size(past, 0), tape.size(past, 1), spare, tape.size(past, 3), axis=0
    )
    zeros = tape.op("CastLike", tape.op("ConstantOfShape", shape), past)
    return tape.op("Concat", past, zeros, axis=2)


def _branch(node: ir.Node, inputs: Sequence[ir.Value | None], tape: _Tape, label: str) -> ir.Graph:
    copy = ir.Node(
        node.domain,
        node.op_type,
        list(inputs),
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=f"{node.name or node.outputs[0].name}.{label}",
    )
    for old, value in zip(node.outputs, copy.outputs, strict=True):
        value.name, value.type = f"{old.name}.{label}", old.type
    return ir.Graph([], copy.outputs, nodes=[*tape.nodes, copy], name=f"{copy.name}.branch")
