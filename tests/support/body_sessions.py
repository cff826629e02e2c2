"""A function body in onnxruntime as one node of a model, for calls of any size."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ctx_export.ops import reference_far as far
from ctx_export.ops.bodies import FAR_BODIES
from ctx_export.ops.reference_far import FarCase
from ctx_export.ops.spec import DOMAIN, OPERATORS, PLUGIN_ATTRIBUTES

_TYPES = {
    np.dtype(np.float32): ir.DataType.FLOAT,
    np.dtype(np.float16): ir.DataType.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): ir.DataType.BFLOAT16,
    np.dtype(np.int64): ir.DataType.INT64,
}
_OPERATORS = {
    far.SelfExtendCase: "SelfExtendAttention",
    far.DualChunkCase: "DualChunkAttention",
    far.MemoryCase: "MemoryAttention",
    far.LandmarkCase: "LandmarkAttention",
}
Array = NDArray[Any]


def far_body(case: FarCase) -> ir.Function:
    """The body that serves a case."""
    body = FAR_BODIES[_OPERATORS[type(case)]]
    optional = ("inv_freq", "multiplier", "head_sink")
    own = {}
    if isinstance(case, far.LandmarkCase):
        own = {"shared": bool(case.shared), "landmark": bool(case.landmark)}
    variant = body.variant(
        optional=tuple(name for name in optional if getattr(case, name) is not None),
        softcap=case.softcap != 0,
        layout=case.layout,
        **own,
    )
    return body.make(variant)


def body_model(case: FarCase) -> ir.Model:
    """The body that serves `case` with its attributes, for calls of its types and any sizes."""
    function = far_body(case)
    spec = OPERATORS[function.name]
    names = [value.name or "" for value in function.inputs]
    known = {field.name for field in fields(case)}
    attributes = {
        name: kind(getattr(case, name)) for name, kind in spec.attributes.items() if name in known
    }
    optional = ",".join(names[len(spec.inputs) :])
    inputs = [_input(name, getattr(case, name)) for name in names]
    node = ir.node(
        function.name,
        inputs,
        {**attributes, "alias": 1, "optional_inputs": optional, **PLUGIN_ATTRIBUTES},
        domain=DOMAIN,
        num_outputs=len(spec.outputs),
    )
    for value, name in zip(node.outputs, spec.outputs, strict=True):
        value.name, value.type = f"out_{name}", inputs[0].type
    opsets = {"": 23, DOMAIN: 1}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=opsets, name="g")
    return ir.Model(graph, ir_version=10, functions=[function])


class BodySession:
    """`body_model` in onnxruntime with its optimisation off."""

    def __init__(self, case: FarCase) -> None:
        model = body_model(case)
        self.names = [value.name or "" for value in model.graph.inputs]
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, case: FarCase) -> tuple[Array, Array, Array]:
        """y, present_key and present_value."""
        y, key, value = self.session.run(None, self._feeds(case))
        return y, key, value

    def aliased(self, case: FarCase) -> tuple[Array, Array, Array]:
        """The same with present in past's memory."""
        binding = self.session.io_binding()
        given = {
            name: ort.OrtValue.ortvalue_from_numpy(value)
            for name, value in self._feeds(case).items()
        }
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("out_y", "cpu")
        for part in ("key", "value"):
            binding.bind_ortvalue_output(f"out_present_{part}", given[f"past_{part}"])
        self.session.run_with_iobinding(binding)
        y = binding.get_outputs()[0].numpy()
        return y, given["past_key"].numpy(), given["past_value"].numpy()

    def _feeds(self, case: FarCase) -> dict[str, Array]:
        return {name: np.ascontiguousarray(getattr(case, name)) for name in self.names}


def _input(name: str, value: Array) -> ir.Value:
    sizes = [f"{name}_{axis}" for axis in range(value.ndim)]
    return ir.Value(name=name, type=ir.TensorType(_TYPES[value.dtype]), shape=ir.Shape(sizes))
