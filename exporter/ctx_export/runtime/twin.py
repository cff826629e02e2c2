"""The float32 twin of a bfloat16 model, for CPUs, where onnxruntime has no bfloat16 MatMul.

The graph's bfloat16 types become float32 and the weights are widened, which is exact, one tensor
at a time from the mapped files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ctx_export.core.errors import UserError

_BFLOAT16, _FLOAT = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
# Attributes of standard operators that name an element type.
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "stash_type", "softmax_precision"})
log = logging.getLogger(__name__)


def widen_types(model: onnx.ModelProto) -> None:
    """Make every bfloat16 type of `model` float32, small constants included; tensors with external
    data only change their stated type, see `widened_weights`."""
    _widen_graph(model.graph)
    for function in model.functions:
        for info in function.value_info:
            _widen_type(info.type)
        for default in function.attribute_proto:
            _widen_attribute(default)
        _widen_nodes(function.node)


def widened_weights(
    model: onnx.ModelProto, directory: Path
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every external bfloat16 weight of a model not yet widened, by name, as float32."""
    for tensor in model.graph.initializer:
        if tensor.data_type == _BFLOAT16 and _is_external(tensor):
            yield tensor.name, _from_file(tensor, directory)


def is_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether any weight or cache of `model` is bfloat16."""
    inputs = (value.type.tensor_type.elem_type for value in model.graph.input)
    weights = (tensor.data_type for tensor in model.graph.initializer)
    return _BFLOAT16 in set(inputs) | set(weights)


def widen(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits as float32: they are its upper half."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def narrow(values: NDArray[Any]) -> NDArray[np.uint16]:
    """float32 as bfloat16 bits, rounded to nearest even."""
    import ml_dtypes

    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _from_file(tensor: onnx.TensorProto, directory: Path) -> NDArray[np.float32]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = directory / entries["location"]
    count = int(np.prod(tensor.dims, dtype=np.int64))
    try:
        bits = np.memmap(path, np.uint16, "r", int(entries.get("offset", "0")), (count,))
    except (OSError, ValueError) as error:
        raise UserError(
            f"weight {tensor.name} cannot be read from {path}: {error}; export the package again"
        ) from None
    return widen(bits).reshape(tuple(tensor.dims))


def _widen_graph(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(info.type)
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Any) -> None:
    for node in nodes:
        for attribute in node.attribute:
            _widen_attribute(attribute)


def _widen_attribute(attribute: onnx.AttributeProto) -> None:
    if attribute.name in _TYPE_ATTRIBUTES and attribute.type == onnx.AttributeProto.INT:
        if attribute.i == _BFLOAT16:
            attribute.i = _FLOAT
    elif attribute.type == onnx.AttributeProto.TENSOR:
        _widen_tensor(attribute.t)
    elif attribute.type == onnx.AttributeProto.TYPE_PROTO:
        _widen_type(attribute.tp)
    for tensor in attribute.tensors:
        _widen_tensor(tensor)
    if attribute.type == onnx.AttributeProto.GRAPH:
        _widen_graph(attribute.g)
    for graph in attribute.graphs:
        _widen_graph(graph)


def _widen_type(kind: onnx.TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which == "tensor_type" and kind.tensor_type.elem_type == _BFLOAT16:
        kind.tensor_type.elem_type = _FLOAT
    elif which == "sequence_type":
        _widen_type(kind.sequence_type.elem_type)
    elif which == "optional_type":
        _widen_type(kind.optional_type.elem_type)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type != _BFLOAT16:
        return
    if _is_external(tensor):
        tensor.data_type = _FLOAT
        return
    values = np.asarray(onnx.numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
