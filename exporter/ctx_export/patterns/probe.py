"""Runs a part of a graph, cut out between given values, in onnxruntime and float32.

What a part of a graph computes is read off its results, whatever operators it is written with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ctx_export.patterns.graph_view import GraphView, carries_states, inputs_of
from ctx_export.patterns.result_size import SIZED_BY_NUMBERS, result_elements

if TYPE_CHECKING:
    import onnx

Feeds = Mapping[ir.Value, NDArray[Any]]
_SHORT = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LARGEST = 1 << 28  # bytes of a constant that a probe may read
_MOST_NODES = 4096
_MOST_ELEMENTS = 1 << 26  # of a result whose size the graph's own numbers choose


class ProbeError(Exception):
    """A part of a graph that cannot be run by itself; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The size of a probe: sequences and new tokens, at positions 0…tokens-1 of an empty cache."""

    batch: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Values of a graph at an extent. `constants` replaces numbers of constants, `stand_ins` says
    whether a table without data was given arbitrary numbers."""

    values: tuple[NDArray[Any], ...]
    stand_ins: bool


def run(
    view: GraphView,
    outputs: Sequence[ir.Value],
    feeds: Feeds,
    extent: Extent,
    constants: Feeds | None = None,
) -> Probe:
    """Compute `outputs` from the values given in `feeds` and from the graph's inputs at `extent`.

    Half precisions are computed in float32. Raises ProbeError where that is not possible.
    """
    import onnxruntime as ort

    cut = _Cut(view, feeds, extent, constants or {})
    for value in outputs:
        cut.require(value)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(
            cut.model(outputs).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results = session.run(None, cut.fed)
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        raise ProbeError(str(error).strip().splitlines()[0]) from None
    return Probe(values=tuple(np.asarray(result) for result in results), stand_ins=cut.stand_ins)


class _Cut:
    """The nodes between the fed values and the required ones, as they are collected."""

    def __init__(self, view: GraphView, feeds: Feeds, extent: Extent, constants: Feeds) -> None:
        self._view, self._feeds, self._extent, self._constants = view, feeds, extent, constants
        self._nodes: dict[ir.Node, None] = {}  # in an order that can be run
        self._known: set[ir.Value] = set()
        self._initializers: dict[str, NDArray[Any]] = {}
        self.fed: dict[str, NDArray[Any]] = {}
        self.stand_ins = False

    def require(self, value: ir.Value) -> None:
        """Collect what computes `value`, deepest first, without recursion."""
        pending = [value]
        while pending:
            current = pending[-1]
            node = current.producer()
            if current in self._known:
                pending.pop()
            elif node is None or current in self._feeds or self._is_outside(node):
                self._known.add(current)
                self._leaf(current)
                pending.pop()
            else:
                missing = [v for v in inputs_of(node) if v is not None and v not in self._known]
                pending.extend(missing)
                if not missing:
                    _check_size(node)
                    self._nodes[node] = None
                    self._known.update(node.outputs)
                    pending.pop()
            if len(self._nodes) > _MOST_NODES:
                raise ProbeError(f"more than {_MOST_NODES} operators lead to {value.name}")

    def _leaf(self, value: ir.Value) -> None:
        name, node = str(value.name), value.producer()
        if value in self._feeds:
            self.fed[name] = _computed(self._feeds[value])
        elif node is not None:
            self._initializers[name] = self._shape(node)
        elif value.is_graph_input():
            self.fed[name] = _computed(input_at(value, self._extent))
        else:
            self._initializers[name] = self._constant(value)

    def _is_outside(self, node: ir.Node) -> bool:
        """Whether a node is the Shape of hidden states that are not computed here."""
        source = node.inputs[0] if _is_shape(node) else None
        if source is None or source in self._feeds or source in self._known:
            return False
        return source in self._view.hidden

    def _shape(self, node: ir.Node) -> NDArray[np.int64]:
        source = node.inputs[0]
        assert source is not None
        cached = source.is_graph_input() and source.name != "input_ids"
        sizes = shape_at(source, self._extent, past=cached)
        start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
        return np.array(sizes[start:end], np.int64)

    def _constant(self, value: ir.Value) -> NDArray[Any]:
        if value in self._constants:
            return _computed(self._constants[value])
        tensor = value.const_value
        if tensor is not None:
            if tensor.nbytes > _LARGEST:
                raise ProbeError(f"it reads the weight {value.name}")
            return _computed(tensor.numpy())
        self.stand_ins = True
        return stand_in(value)

    def model(self, outputs: Sequence[ir.Value]) -> onnx.ModelProto:
        import onnx

        nodes = [
            proto for node in self._nodes for proto in _for_every_row(_node(node, self._constants))
        ]
        opsets = {node.domain for node in self._nodes} | {""}
        versions = dict(self._view.graph.opset_imports)
        proto = onnx.helper.make_graph(
            nodes,
            "probe",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
                )
                for name, array in self.fed.items()
            ],
            [onnx.helper.make_empty_tensor_value_info(str(value.name)) for value in outputs],
            [onnx.numpy_helper.from_array(a, name) for name, a in self._initializers.items()],
        )
        return onnx.helper.make_model(
            proto,
            ir_version=10,
            opset_imports=[
                onnx.helper.make_opsetid(domain, versions.get(domain, 1)) for domain in opsets
            ],
        )


def _check_size(node: ir.Node) -> None:
    """Raise ProbeError for a node that would fill the memory by numbers of its own."""
    if node.op_type not in SIZED_BY_NUMBERS:
        return
    elements = result_elements(node)
    if math.isfinite(elements) and elements > _MOST_ELEMENTS:
        raise ProbeError(
            f"{node.op_type} ({node.outputs[0].name}) makes {elements:.3g} numbers at once"
        )


def stand_in(value: ir.Value) -> NDArray[np.float32]:
    """Arbitrary numbers, all different, for a tensor whose data is elsewhere."""
    if value.shape is None or not value.shape.is_static():
        raise ProbeError(f"it reads {value.name}, which has no data")
    sizes = value.shape.numpy()
    return (1.0 / (2.0 + np.arange(np.prod(sizes)))).astype(np.float32).reshape(sizes)


def _is_shape(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type == "Shape"


def _computed(array: NDArray[Any]) -> NDArray[Any]:
    """`array` in a type that onnxruntime's CPU provider computes in."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 and _is_float(array) else array


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _node(node: ir.Node, constants: Feeds) -> onnx.NodeProto:
    """A node that computes in float32 where it was written in a shorter type."""
    import onnx

    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    if node.op_type == "Constant" and node.outputs[0] in constants:
        held = onnx.numpy_helper.from_array(_computed(constants[node.outputs[0]]))
        del proto.attribute[:]
        proto.attribute.append(onnx.helper.make_attribute("value", held))
    _lengthen(proto)
    return proto


def _lengthen(proto: onnx.NodeProto) -> None:
    """float32 in place of shorter types in the attributes of a node and in its subgraphs."""
    import onnx

    short = [int(dtype) for dtype in _SHORT]
    del proto.metadata_props[:]
    for attribute in proto.attribute:
        if attribute.name in ("to", "dtype") and attribute.i in short:
            attribute.i = onnx.TensorProto.FLOAT
        if attribute.HasField("t") and attribute.t.data_type in short:
            held = _computed(onnx.numpy_helper.to_array(attribute.t))
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(held))
        for inner in attribute.g.node:
            _lengthen(inner)
        for tensor in attribute.g.initializer:
            if tensor.data_type in short:
                held = _computed(onnx.numpy_helper.to_array(tensor))
                tensor.CopyFrom(onnx.numpy_helper.from_array(held, tensor.name))
        for info in (*attribute.g.output, *attribute.g.value_info):
            if info.type.tensor_type.elem_type in short:
                info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _for_every_row(proto: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A node with what it needs in front: onnxruntime's RotaryEmbedding wants cosines of every
    sequence, where exporters give one row of positions for all."""
    from onnx.helper import make_node

    if proto.domain or proto.op_type != "RotaryEmbedding" or len(proto.input) > 3:
        return [proto]
    name = proto.output[0]
    nodes = [
        make_node("Shape", [proto.input[0]], [f"{name}.rows"], start=0, end=1),
        make_node("Constant", [], [f"{name}.ones"], value_ints=[1, 1]),
        make_node("Concat", [f"{name}.rows", f"{name}.ones"], [f"{name}.sizes"], axis=0),
    ]
    for index in (1, 2):
        wide = f"{name}.table{index}"
        nodes.append(make_node("Expand", [proto.input[index], f"{name}.sizes"], [wide]))
        proto.input[index] = wide
    return [*nodes, proto]


def input_at(value: ir.Value, extent: Extent) -> NDArray[Any]:
    """What a graph input holds for the first `extent.tokens` tokens of every sequence.

    Raises ProbeError for an input whose meaning is not known.
    """
    assert value.dtype is not None
    dtype, name = value.dtype.numpy(), str(value.name)
    rank = len(value.shape) if value.shape is not None else -1
    if name == "input_ids":
        return np.zeros((extent.batch, extent.tokens), dtype)
    if carries_states(value):
        return np.zeros(shape_at(value, extent, past=True), dtype)
    if "position" in name and rank in (1, 2):
        rows = np.arange(extent.tokens, dtype=dtype)
        return rows if rank == 1 else np.broadcast_to(rows, (extent.batch, extent.tokens)).copy()
    if "mask" in name and rank == 2:
        return np.ones((extent.batch, extent.tokens), dtype)
    raise ProbeError(f"the graph's input {name} is not known: what it holds cannot be told")


def shape_at(value: ir.Value, extent: Extent, *, past: bool = False) -> tuple[int, ...]:
    """The shape of `value` at `extent`: its first symbolic dimension is the batch, the others are
    the tokens, of an empty cache 0."""
    if value.shape is None:
        raise ProbeError(f"the rank of {value.name} is not known")
    tokens = 0 if past else extent.tokens
    return tuple(
        size if isinstance(size, int) else extent.batch if axis == 0 else tokens
        for axis, size in enumerate(value.shape)
    )
