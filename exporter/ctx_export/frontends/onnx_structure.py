"""Whether the graphs of an ONNX file are graphs: every value made once, before it is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from ctx_export.core.errors import UserError

_AGAIN = "export the model again"


def check_structure(path: Path, model: onnx.ModelProto) -> None:
    """Raise UserError for a cyclic or unsorted graph, a name used twice, a value that nothing
    makes, a negative dimension, or functions that call each other in a circle."""
    _check_graph(path, model.graph, frozenset())
    seen: set[tuple[str, str, str]] = set()
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in seen:
            raise UserError(
                f"{path} has two functions {function.domain}.{function.name}: {_AGAIN}"
            )
        seen.add(key)
        _check_nodes(path, function.node, set(function.input))
        _check_made(path, function.output, {*function.input, *_outputs(function.node)})
    _check_calls(path, model)


def _check_graph(path: Path, graph: onnx.GraphProto, outer: frozenset[str]) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        _check_type(path, info)
    given = [info.name for info in graph.input]
    kept = [tensor.name for tensor in graph.initializer]
    for what, names in (("inputs", given), ("weights", kept)):
        _check_once(path, names, what)
    _check_once(path, [info.name for info in graph.output], "outputs")
    known = {*given, *kept} | outer
    _check_nodes(path, graph.node, known)
    _check_made(path, [info.name for info in graph.output], known | {*_outputs(graph.node)})


def _check_made(path: Path, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{path}: no node makes the output {name}: {_AGAIN}")


def _check_once(path: Path, names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} has two {what} named {twice!r}: {_AGAIN}")


def _check_type(path: Path, info: onnx.ValueInfoProto) -> None:
    for dimension in info.type.tensor_type.shape.dim:
        if dimension.WhichOneof("value") == "dim_value" and dimension.dim_value < 0:
            raise UserError(
                f"{path}: {info.name} has a dimension of {dimension.dim_value}: give dimensions "
                f"that may change a name; {_AGAIN} with dynamic axes"
            )


def _check_nodes(path: Path, nodes: Sequence[onnx.NodeProto], outer: set[str]) -> None:
    """Nodes in order, in a scope where `outer` is known."""
    known, makers = set(outer), _makers(path, nodes, outer)
    for place, node in enumerate(nodes):
        for name in node.input:
            if name and name not in known:
                raise _unknown(path, nodes, place, name, makers)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                if graph.node or graph.output:
                    _check_graph(path, graph, frozenset(known))
        known.update(name for name in node.output if name)


def _makers(path: Path, nodes: Sequence[onnx.NodeProto], outer: set[str]) -> dict[str, int]:
    """The place of the node that makes each value."""
    makers: dict[str, int] = {}
    for place, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in makers or name in outer:
                raise UserError(
                    f"{path}: the value {name!r} is made twice, the second time by {_told(node)}: "
                    f"{_AGAIN}"
                )
            makers[name] = place
    return makers


def _unknown(
    path: Path, nodes: Sequence[onnx.NodeProto], place: int, name: str, makers: dict[str, int]
) -> UserError:
    node = nodes[place]
    if name not in makers:
        return UserError(f"{path}: {_told(node)} reads {name!r}, which nothing makes: {_AGAIN}")
    reached, waiting = set(), [makers[name]]
    while waiting:
        at = waiting.pop()
        if at in reached:
            continue
        reached.add(at)
        waiting += [makers[read] for read in nodes[at].input if read in makers]
    if place in reached:
        return UserError(
            f"{path}: the graph is cyclic: {_told(node)} reads {name!r}, which is made from its "
            f"own result; {_AGAIN}"
        )
    return UserError(
        f"{path}: the nodes are not sorted: {_told(node)} reads {name!r}, which a later node "
        f"makes; {_AGAIN}"
    )


def _outputs(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    return [name for node in nodes for name in node.output]


def _told(node: onnx.NodeProto) -> str:
    name = node.name or (node.output[0] if node.output else "without a name")
    return f"{node.op_type} ({name})"


def _check_calls(path: Path, model: onnx.ModelProto) -> None:
    """No function may reach itself."""
    calls = {(f.domain, f.name): {(n.domain, n.op_type) for n in f.node} for f in model.functions}
    done: set[tuple[str, str]] = set()
    for start in calls:
        stack = [(start, iter(calls[start]))]
        above = {start}
        while stack:
            at, rest = stack[-1]
            called = next((c for c in rest if c in calls and c not in done), None)
            if called is None:
                stack.pop()
                above.discard(at)
                done.add(at)
            elif called in above:
                raise UserError(f"{path}: function {called[0]}.{called[1]} calls itself: {_AGAIN}")
            else:
                above.add(called)
                stack.append((called, iter(calls[called])))
