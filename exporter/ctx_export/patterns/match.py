"""Small helpers to walk a graph backwards, and the miss that says where and why a walk ended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A pattern that did not match: the node where it stopped, how far it got and the reason."""

    pattern: str
    node: str
    reason: str
    depth: int  # steps that did match; the deepest miss is the nearest

    def __str__(self) -> str:
        return f"nearest match {self.pattern}, stopped at {self.node}: {self.reason}"


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes `value` where it is a standard operator of this type."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type == op_type else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array that `value` always holds, or None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return tensor.numpy() if tensor is not None else None


def scalar(value: ir.Value | None) -> int | None:
    """The single integer that `value` always holds, or None."""
    held = number(value)
    return None if held is None else int(held)


def number(value: ir.Value | None) -> float | None:
    """The single number that `value` always holds, or None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1:
        return None
    return float(tensor.numpy().reshape(-1)[0])


def uncast(value: ir.Value | None) -> ir.Value | None:
    """What `value` is cast from, or itself."""
    while (node := producer(value, "Cast")) is not None:
        value = node.inputs[0]
    return value


def dimension(value: ir.Value, axis: int) -> int | None:
    """One static dimension of `value`, or None."""
    size = value.shape[axis] if value.shape is not None else None
    return size if isinstance(size, int) else None


def describe(value: ir.Value | None) -> str:
    """The operator and name behind a value, for messages."""
    if value is None:
        return "an absent input"
    node = value.producer()
    return f"{node.op_type} ({value.name})" if node is not None else f"input {value.name}"
