"""Parts of a graph that compute the same: layers repeat, and one of each kind has to be run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import onnx_ir as ir

from ctx_export.patterns.graph_view import GraphView, inputs_of

_SMALL = 1 << 16  # bytes of a constant that is compared by its numbers
_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
Result = TypeVar("Result")


class Alike:
    """What was found out about parts of one graph, by what they compute.

    A part is what lies between some sources and some outputs. Two parts are alike where the same
    operators stand in the same order between sources of the same shapes, over constants of the
    same numbers, tables without data of the same shapes, and the same graph inputs.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._numbers: dict[Hashable, int] = {}  # of every description met, in order
        self._shared: dict[ir.Value, int] = {}  # of values that depend on no hidden state
        self._found: dict[Hashable, object] = {}

    def once(
        self,
        outputs: Sequence[ir.Value],
        sources: Sequence[ir.Value],
        compute: Callable[[], Result],
        *beside: Hashable,
    ) -> Result:
        """What `compute` gave for a part alike, with the same facts `beside` it, or gives now."""
        known: dict[ir.Value, int] = {}
        for place, source in enumerate(sources):
            known.setdefault(source, self._number(("source", place, _form(source))))
        key = (tuple(self._of(value, known) for value in outputs), beside)
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]  # type: ignore[return-value]

    def leaf(self, value: ir.Value) -> int:
        """The number of a value that is taken for a constant."""
        return self._number(_leaf(value))

    def _of(self, output: ir.Value, known: dict[ir.Value, int]) -> int:
        """The number of `output`, deepest first, without recursion."""
        pending = [output]
        while pending:
            value = pending[-1]
            numbers = known if value in self._view.hidden else self._shared
            if value in known or value in numbers:
                pending.pop()
                continue
            node = value.producer()
            read = self._read(node)
            missing = [v for v in read if v not in known and v not in self._shared]
            pending.extend(missing)
            if missing:
                continue
            inputs = tuple(known.get(v, self._shared.get(v, -1)) for v in read)
            numbers[value] = self._number(self._description(value, inputs))
            pending.pop()
        return known[output] if output in known else self._shared[output]

    def _read(self, node: ir.Node | None) -> list[ir.Value]:
        """What a node's result depends on; of hidden states that it only measures, their shape."""
        if node is None or self._measures(node):
            return []
        return [value for value in inputs_of(node) if value is not None]

    def _measures(self, node: ir.Node) -> bool:
        return (node.domain, node.op_type) == ("", "Shape") and node.inputs[0] in self._view.hidden

    def _description(self, value: ir.Value, inputs: tuple[int, ...]) -> Hashable:
        node = value.producer()
        if node is None:
            return _leaf(value)
        operator = (node.domain, node.op_type, value.index())
        given = tuple(source is not None for source in node.inputs)
        attributes = tuple(sorted(_attribute(a) for a in node.attributes.values()))
        if self._measures(node):
            assert node.inputs[0] is not None
            return (operator, attributes, _form(node.inputs[0]))
        return (operator, given, attributes, inputs)

    def _number(self, description: Hashable) -> int:
        return self._numbers.setdefault(description, len(self._numbers))


def _form(value: ir.Value) -> Hashable:
    """Type and shape; a value whose shape is not known is like itself alone."""
    if value.shape is None or any(not isinstance(s, int) and s.value is None for s in value.shape):
        return id(value)
    return (value.dtype, tuple(str(size) for size in value.shape))


def _leaf(value: ir.Value) -> Hashable:
    tensor = value.const_value
    if tensor is None:
        return ("input" if value.is_graph_input() else "no data", *_named(value))
    return ("constant", *_held(tensor))


def _named(value: ir.Value) -> tuple[Hashable, ...]:
    return (value.name,) if value.is_graph_input() else (_form(value),)


def _held(tensor: ir.TensorProtocol) -> tuple[Hashable, ...]:
    if tensor.nbytes > _SMALL:
        return (id(tensor),)
    return (tensor.dtype, tuple(tensor.shape.numpy()), tensor.numpy().tobytes())


def _attribute(attribute: ir.Attr) -> tuple[str, str]:
    """Name and contents; a subgraph is like itself alone."""
    if attribute.type in _SUBGRAPHS:
        return attribute.name, str(id(attribute))
    if attribute.type is ir.AttributeType.TENSOR:
        return attribute.name, repr(_held(attribute.as_tensor()))
    return attribute.name, repr(attribute.value)
