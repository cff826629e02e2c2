"""Puts nodes in front of another one, with a type and a shape on every value it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

HEADS_FIRST = [0, 2, 1, 3]  # [B,S,H,D] to [B,H,S,D] and back
Dimension = int | ir.SymbolicDim | None
Dimensions = ir.Shape | Sequence[Dimension]


@dataclass(frozen=True, slots=True, kw_only=True)
class Insertion:
    """Nodes in front of `before`, a node of `graph`; what they make is named after its result.
    `taken`: the names in use, shared by all insertions into the graph."""

    graph: ir.Graph
    before: ir.Node
    taken: set[str]

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shape: Dimensions | None,
        *,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """The only output of one node, of the type of its first input."""
        (value,) = self.ops(op_type, inputs, [shape], domain=domain, **attributes)
        return value

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        shapes: Sequence[Dimensions | None],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> list[ir.Value]:
        """All outputs of one node, one for every shape, of the type of its first input."""
        given = {key: value for key, value in attributes.items() if value is not None}
        node = ir.node(
            op_type, list(inputs), given or None, domain=domain, num_outputs=len(shapes)
        )
        self.graph.insert_before(self.before, node)
        first, stem = inputs[0], f"{self.before.outputs[0].name}/{op_type}"
        for index, (value, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
            value.name = self._free_name(f"{stem}.{index}" if index else stem)
            value.shape = ir.Shape(shape) if shape is not None else None
            value.type = first.type if first is not None else None
        return list(node.outputs)

    def constant(self, array: NDArray[Any], name: str) -> ir.Value:
        """An initializer that holds `array`, one for all that are called `name` and equal."""
        held = self.graph.initializers.get(name)
        if held is not None and held.const_value is not None:
            same = held.const_value.numpy()
            if same.dtype == array.dtype and np.array_equal(same, array):
                return held
        return self._register(ir.tensor(array), name)

    def initializer(self, tensor: ir.TensorProtocol, suffix: str) -> ir.Value:
        """An initializer of this node's own."""
        return self._register(tensor, f"{self.before.outputs[0].name}/{suffix}")

    def scalar(self, number: float, dtype: ir.DataType) -> ir.Value:
        """A number of the type `dtype`."""
        return self.constant(np.asarray(number, dtype.numpy()), f"number.{number}.{dtype.name}")

    def integers(self, numbers: Sequence[int]) -> ir.Value:
        """An int64 vector, one initializer for all that are equal."""
        name = "integers." + ".".join(str(number) for number in numbers)
        return self.constant(np.asarray(numbers, np.int64), name)

    def split_heads(self, value: ir.Value, heads: int, head_dim: int) -> ir.Value:
        """[B,S,H·D] as [B,H,S,D]."""
        batch, tokens = leading(value)
        shape = self.integers([0, 0, heads, head_dim])
        apart = self.op("Reshape", [value, shape], [batch, tokens, heads, head_dim])
        return self.op("Transpose", [apart], [batch, heads, tokens, head_dim], perm=HEADS_FIRST)

    def join_heads(self, value: ir.Value) -> ir.Value:
        """[B,H,S,D] as [B,S,H·D]."""
        assert value.shape is not None
        batch, heads, tokens, head_dim = value.shape
        assert isinstance(heads, int) and isinstance(head_dim, int)
        turned = self.op("Transpose", [value], [batch, tokens, heads, head_dim], perm=HEADS_FIRST)
        shape = self.integers([0, 0, heads * head_dim])
        return self.op("Reshape", [turned, shape], [batch, tokens, heads * head_dim])

    def replace(self, new: ir.Value) -> None:
        """`new` takes the place and the name of the first output of `before`, which goes."""
        old = self.before.outputs[0]
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(self.before, safe=True)
        new.name = old.name

    def _register(self, tensor: ir.TensorProtocol, wanted: str) -> ir.Value:
        name = self._free_name(wanted)
        tensor.name = name
        value = ir.Value(
            name=name,
            const_value=tensor,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
        )
        self.graph.register_initializer(value)
        return value

    def _free_name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            name, count = f"{wanted}_{count}", count + 1
        self.taken.add(name)
        return name


def names_of(graph: ir.Graph) -> set[str]:
    """The names of all values of `graph`."""
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    return {value.name for value in values if value.name}


def leading(value: ir.Value) -> tuple[Dimension, Dimension]:
    """The batch and token dimensions of a value [B,S,…]."""
    assert value.shape is not None
    return value.shape[0], value.shape[1]
