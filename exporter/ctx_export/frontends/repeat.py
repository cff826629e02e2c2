"""Repeat traced decoder layers: one block of nodes per kind becomes one block per layer."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.core.errors import UserError

_SCOPES = "pkg.torch.onnx.name_scopes"  # PyTorch's record of the module path of every node


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Nodes of one traced layer in graph order, the hidden state they take and that they give."""

    kind: int
    nodes: tuple[ir.Node, ...]
    hidden_in: ir.Value
    hidden_out: ir.Value


def repeat_layers(graph: ir.Graph, *, prefix: str, kinds: Sequence[int]) -> None:
    """Replace the traced layers `prefix.0 …` by one copy per entry of `kinds`.

    `kinds[i]` is the traced layer that layer i copies. The layers' initializers are named after
    the layer; values from outside a layer are shared. Raises UserError where a layer does not take
    and give exactly one hidden state.
    """
    count = max(kinds) + 1
    blocks = [_block(graph, prefix, kind) for kind in range(count)]
    names = _initializers_by_layer(graph, prefix, count)
    hidden = blocks[0].hidden_in
    first = blocks[0].nodes[0]
    outside = blocks[-1].hidden_out
    created: list[ir.Node] = []
    for layer, kind in enumerate(kinds):
        nodes, hidden = _copy(graph, blocks[kind], hidden, layer, names[kind])
        created.extend(nodes)
    graph.insert_before(first, created)
    ir.convenience.replace_all_uses_with(outside, hidden, replace_graph_outputs=True)
    for block in reversed(blocks):
        graph.remove(block.nodes[::-1], safe=False)
    for values in names:
        for value in values:
            graph.initializers.pop(str(value.name), None)
    graph.sort()
    _rename_layers(graph, prefix)


def _scopes(node: ir.Node) -> list[str]:
    text = node.metadata_props.get(_SCOPES)
    return list(ast.literal_eval(text)) if text else []


def _block(graph: ir.Graph, prefix: str, kind: int) -> Block:
    nodes = _own_nodes(graph, prefix, kind)
    inside = {value for node in nodes for value in node.outputs}
    taken = {
        value: None
        for node in nodes
        for value in node.inputs
        if value is not None and value not in inside and _is_hidden(value)
    }
    given = [value for node in nodes for value in node.outputs if _leaves(value, inside)]
    if len(taken) != 1 or len(given) != 1:
        raise UserError(
            f"traced layer {prefix}.{kind} takes {[v.name for v in taken]} and gives "
            f"{[v.name for v in given]}: exactly one hidden state each is supported"
        )
    return Block(kind=kind, nodes=nodes, hidden_in=next(iter(taken)), hidden_out=given[0])


def _own_nodes(graph: ir.Graph, prefix: str, kind: int) -> tuple[ir.Node, ...]:
    """Nodes that differ from layer to layer: those of the layer's module that depend on tokens or
    on its weights. Shapes, masks and cosines traced inside a layer are shared by all layers."""
    scope, weights = f"model.{prefix}.{kind}", f"{prefix}.{kind}."
    own: set[ir.Node] = set()
    for node in graph:
        scopes = _scopes(node)
        sources = [value for value in node.inputs if value is not None]
        from_own = any(value.producer() in own for value in sources)
        weighed = any(str(value.name).startswith(weights) for value in sources)
        in_scope = scope in scopes and (weighed or any(map(_is_hidden, sources)))
        # A node that the optimizer made has no scope: it belongs where its inputs do.
        if in_scope or (from_own and (scope in scopes or not scopes)):
            own.add(node)
    return tuple(node for node in graph if node in own)


def _leaves(value: ir.Value, inside: set[ir.Value]) -> bool:
    users = (use.node.outputs[0] for use in value.uses())
    return value.is_graph_output() or any(user not in inside for user in users)


def _is_hidden(value: ir.Value) -> bool:
    """Whether a value from outside is a hidden state: made by a node, floating, not a table that
    every layer shares (cosines and masks come from positions, not from tokens)."""
    producer = value.producer()
    if producer is None or value.dtype is None or not value.dtype.is_floating_point():
        return False
    return _depends_on_tokens(value)


def _depends_on_tokens(value: ir.Value) -> bool:
    """Whether any floating path leads from `value` to a weight lookup or matrix product."""
    stack, known = [value], set()
    while stack:
        node = stack.pop().producer()
        if node is None or node in known:
            continue
        known.add(node)
        if node.op_type in ("Gather", "MatMul", "Gemm") and any(
            source is not None and source.is_initializer() and source.const_value is None
            for source in node.inputs
        ):
            return True
        stack.extend(v for v in node.inputs if v is not None)
    return False


def _initializers_by_layer(graph: ir.Graph, prefix: str, count: int) -> list[list[ir.Value]]:
    return [
        [
            value
            for name, value in graph.initializers.items()
            if name.startswith(f"{prefix}.{kind}.")
        ]
        for kind in range(count)
    ]


def _copy(
    graph: ir.Graph, block: Block, hidden: ir.Value, layer: int, own: Sequence[ir.Value]
) -> tuple[list[ir.Node], ir.Value]:
    """Copies of a block's nodes for `layer`, reading `hidden`, and the hidden state they give."""
    mapping: dict[ir.Value, ir.Value] = {block.hidden_in: hidden}
    for value in own:
        # "@" keeps the copies' names apart from the traced layers' until those are gone.
        copy = ir.Value(
            name=_layer_name(str(value.name), block.kind, f"@{layer}"),
            type=value.type,
            shape=value.shape,
        )
        copy.const_value = value.const_value
        graph.register_initializer(copy) if copy.const_value is not None else _register(
            graph, copy
        )
        mapping[value] = copy
    nodes = []
    for node in block.nodes:
        nodes.append(_copy_node(node, mapping, layer))
    return nodes, mapping[block.hidden_out]


def _register(graph: ir.Graph, value: ir.Value) -> None:
    """Add an initializer whose data is not known yet."""
    graph.initializers[str(value.name)] = value


def _copy_node(node: ir.Node, mapping: dict[ir.Value, ir.Value], layer: int) -> ir.Node:
    attributes = [ir.Attr(a.name, a.type, a.value) for a in node.attributes.values()]
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in attributes):
        raise UserError(f"node {node.name} ({node.op_type}) has a subgraph inside a decoder layer")
    outputs = [
        ir.Value(name=f"layer{layer}.{value.name}", type=value.type, shape=value.shape)
        for value in node.outputs
    ]
    copy = ir.Node(
        node.domain,
        node.op_type,
        inputs=[mapping.get(v, v) if v is not None else None for v in node.inputs],
        attributes=attributes,
        outputs=outputs,
        name=f"layer{layer}.{node.name}",
    )
    mapping.update(zip(node.outputs, outputs, strict=True))
    return copy


def _layer_name(name: str, old: int, new: str) -> str:
    return name.replace(f".{old}.", f".{new}.", 1)


def _rename_layers(graph: ir.Graph, prefix: str) -> None:
    names: Mapping[str, ir.Value] = dict(graph.initializers)
    for name, value in names.items():
        if name.startswith(f"{prefix}.@"):
            value.name = name.replace(".@", ".", 1)
