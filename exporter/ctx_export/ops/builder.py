"""A thin tape for function bodies: operators by name, constants and attribute references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

OPSET = 23
# onnx.TensorProto data types
FLOAT, DOUBLE, INT64, INT8, FLOAT8E4M3FN = 1, 11, 7, 3, 17


class BodyBuilder:
    """Collects the nodes of one function. Values are onnx-ir values; constants are shared."""

    def __init__(self, inputs: Sequence[str]) -> None:
        self.inputs = {name: ir.Value(name=name) for name in inputs}
        self._nodes: list[ir.Node] = []
        self._count = 0
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Append one standard operator and return its only output."""
        return self.append(ir.node(op_type, list(inputs), attributes or None))

    def append(self, node: ir.Node) -> ir.Value:
        # Branches see outer values, so names are unique over the whole function.
        self._count += 1
        node.name = f"{node.op_type}_{self._count}"
        for index, output in enumerate(node.outputs):
            output.name = f"v{self._count}" + (f"_{index}" if index else "")
        self._nodes.append(node)
        return node.outputs[0]

    def dimension(self, value: ir.Value, axis: int) -> ir.Value:
        """One dimension of `value` as an int64 scalar."""
        return self.op("Squeeze", self.op("Shape", value, start=axis, end=axis + 1))

    def constant(self, value: Any, dtype: type = np.int64) -> ir.Value:
        """A Constant node holding `value`, one per distinct value."""
        array: NDArray[Any] = np.asarray(value, dtype)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            self._constants[key] = self.op("Constant", value=ir.tensor(array))
        return self._constants[key]

    def attribute(self, name: str, kind: str = "int") -> ir.Value:
        """A scalar Constant that takes the calling node's attribute `name` (int or float)."""
        target, kinds = {
            "int": ("value_int", ir.AttributeType.INT),
            "float": ("value_float", ir.AttributeType.FLOAT),
        }[kind]
        reference = ir.RefAttr(target, name, kinds)
        return self.append(ir.Node("", "Constant", inputs=[], attributes=[reference]))

    def choose(
        self, condition: ir.Value, then: Callable[[], ir.Value], otherwise: Callable[[], ir.Value]
    ) -> ir.Value:
        """An If node; each branch is what its callable appends, and may read outer values."""
        branches = {"then_branch": self._branch(then), "else_branch": self._branch(otherwise)}
        return self.append(ir.node("If", [condition], branches))

    def loop(
        self,
        trips: ir.Value,
        initial: ir.Value,
        step: Callable[[ir.Value, ir.Value], ir.Value],
    ) -> ir.Value:
        """A Loop node of `trips` steps; `step` makes the next state of the number of the step and
        the state, and may read outer values."""
        self._count += 1
        names = [f"v{self._count}_{part}" for part in ("step", "go", "state")]
        number, go, state = (ir.Value(name=name) for name in names)
        for value, dtype in ((number, ir.DataType.INT64), (go, ir.DataType.BOOL)):
            value.type, value.shape = ir.TensorType(dtype), ir.Shape(())
        body = self._branch(lambda: step(number, state))
        same = ir.node("Identity", [go], name=f"Identity_{self._count}")
        same.outputs[0].name = f"v{self._count}_on"
        body.append(same)
        for value in (number, go, state):
            body.inputs.append(value)
        body.outputs.insert(0, same.outputs[0])
        return self.append(ir.node("Loop", [trips, None, initial], {"body": body}))

    def _branch(self, build: Callable[[], ir.Value]) -> ir.Graph:
        nodes, constants = self._nodes, self._constants
        self._nodes, self._constants = [], dict(constants)  # a branch's own stay inside it
        try:
            output = build()
            return ir.Graph([], [output], nodes=self._nodes, name=f"branch_of_{output.name}")
        finally:
            self._nodes, self._constants = nodes, constants

    def cast(self, value: ir.Value, to: int) -> ir.Value:
        return self.op("Cast", value, to=to)

    def function(
        self, name: str, domain: str, outputs: Sequence[ir.Value], attributes: dict[str, type]
    ) -> ir.Function:
        """The finished function; every attribute is required on its call sites."""
        graph = ir.Graph(
            list(self.inputs.values()),
            list(outputs),
            nodes=self._nodes,
            opset_imports={"": OPSET},
            name=name,
        )
        kinds = {
            int: ir.AttributeType.INT,
            float: ir.AttributeType.FLOAT,
            str: ir.AttributeType.STRING,
        }
        declared = [ir.Attr(key, kinds[kind], None) for key, kind in attributes.items()]
        return ir.Function(domain, name, graph=graph, attributes=declared)
