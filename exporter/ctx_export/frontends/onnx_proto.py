"""An .onnx file as a protobuf message, refused where it is damaged or unsafe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from ctx_export.core.errors import UserError
from ctx_export.frontends.onnx_structure import check_structure
from ctx_export.frontends.onnx_tensors import check_tensor, fill_external
from ctx_export.ops.spec import DOMAIN

MOST_BYTES = (1 << 31) - 1  # of a protobuf message
_STANDARD = ("", "ai.onnx")
_AGAIN = "export or download it again"


def read_proto(path: Path) -> onnx.ModelProto:
    """The model of `path` with every tensor checked against the bytes that hold it.

    Raises UserError for what is not a whole ONNX model, was written by ctx-export, has a graph
    that is no graph, or refers to bytes that it does not have or must not read.
    """
    model = _parse(path)
    if not model.HasField("graph") or not model.graph.node:
        raise UserError(f"{path} has no graph: it is not an ONNX model; name an .onnx file")
    _check_opsets(path, model)
    check_structure(path, model)
    for tensor in tensors(model):
        check_tensor(path, tensor)
        fill_external(path, tensor)
    return model


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, of its functions and subgraphs too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _attribute_tensors(function.attribute_proto)
        for node in function.node:
            yield from _attribute_tensors(node.attribute)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, of its functions and subgraphs too."""
    for node in (*model.graph.node, *(n for f in model.functions for n in f.node)):
        yield from _with_inner(node)


def _with_inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    yield node
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _with_inner(inner)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(
    attributes: Iterable[onnx.AttributeProto],
) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise UserError(f"{path} is not a file: name an .onnx file")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise UserError(
            f"{path} has {size} bytes and protobuf ends at {MOST_BYTES}: it is damaged, or no "
            "ONNX model; models of that size keep their weights as external data"
        )
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError depends on its implementation
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"{path} is not an ONNX model, or a truncated one ({reason or type(error).__name__}): "
            f"{_AGAIN}"
        ) from None


def _check_opsets(path: Path, model: onnx.ModelProto) -> None:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if DOMAIN in opsets or any(node.domain == DOMAIN for node in nodes(model)):
        raise UserError(
            f"{path} has operators of the domain {DOMAIN}: ctx-export has rewritten it already; "
            "name the model that it was made from"
        )
    if not any(domain in opsets for domain in _STANDARD):
        raise UserError(f"{path} states no opset version of the standard operators: {_AGAIN}")
    if model.graph.sparse_initializer:
        raise UserError(
            f"{path} has sparse weights ({model.graph.sparse_initializer[0].values.name}), which "
            "are not supported: export it with dense ones"
        )
