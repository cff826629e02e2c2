"""A node of the domain com.microsoft: its inputs by name, its attributes, and its refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import onnx_ir as ir

from ctx_export.core.errors import UserError

DOMAIN = "com.microsoft"


@dataclass(frozen=True, slots=True)
class ContribNode:
    """A node and the questions that lowering it asks; `inputs` are the schema's names in order."""

    node: ir.Node
    inputs: tuple[str, ...]

    def input(self, name: str) -> ir.Value | None:
        """An input by its name in the schema, None where it is absent."""
        index = self.inputs.index(name)
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def required(self, name: str) -> ir.Value:
        value = self.input(name)
        if value is None:
            self.refuse(name, "absent", "the operator needs it")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.node.attributes.get_int(name, default) or 0)

    def number(self, name: str, default: float = 0.0) -> float:
        return float(self.node.attributes.get_float(name, default) or 0.0)

    def refuse_input(self, name: str, reason: str) -> None:
        """Refuse the node where it has the input `name`."""
        value = self.input(name)
        if value is not None:
            self.refuse(name, value.name, reason)

    def refuse_output(self, index: int, name: str, reason: str) -> None:
        """Refuse the node where something reads its output `index`."""
        outputs = self.node.outputs
        value = outputs[index] if index < len(outputs) else None
        if value is not None and (value.uses() or value.is_graph_output()):
            self.refuse(name, value.name, reason)

    def refuse(self, what: str, value: object, reason: str) -> NoReturn:
        """Raise UserError that names the node, the attribute or input, its value and why."""
        raise UserError(f"{self} has {what} = {value}: {reason}")

    def __str__(self) -> str:
        return f"{self.node.op_type} ({self.node.outputs[0].name})"


def width(value: ir.Value) -> int | None:
    """The last dimension of a value [B,S,…], from its shape or from the weights that made it."""
    if value.shape is not None and isinstance(value.shape[-1], int):
        return int(value.shape[-1])
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "MatMulNBits":
        return int(node.attributes["N"].as_int())
    sources = node.inputs[1:2] if node.op_type == "MatMul" else node.inputs
    if node.op_type not in ("MatMul", "Add", "Mul", "Cast", "Identity"):
        return None
    widths = [width(source) for source in sources if source is not None]
    return max((found for found in widths if found), default=None)
