"""Tables by length, rope lengths and the function body, for the tests of RotaryFrequencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from ctx_export.ops.frequencies import rotary_frequencies
from ctx_export.ops.spec import DOMAIN, PLUGIN_ATTRIBUTES
from ctx_export.ops.spec import ROTARY_FREQUENCIES as SPEC
from ctx_export.scaling import resolve
from ctx_export.scaling._length_table import LengthTable
from ctx_export.scaling.base import RotaryShape

ORIGINAL, TARGET, HEAD_DIM = 4096, 131072, 80
LENGTHS = (1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 2 * ORIGINAL, TARGET, 1 << 33)


def table_of(method: str, parameters: Mapping[str, Any]) -> LengthTable:
    shape = RotaryShape(
        head_dim=HEAD_DIM,
        rotary_dim=HEAD_DIM,
        theta=1e4,
        original_context=ORIGINAL,
        max_position_embeddings=ORIGINAL if method == "dynamic-ntk" else TARGET,
    )
    table = resolve(method, shape, TARGET, parameters=parameters).length_table
    assert table is not None
    return table


def wide_table(threshold: float) -> LengthTable:
    """One pair that switches at `threshold`: multiplier 1 up to there, 2 beyond."""
    row = np.ones(1)
    return LengthTable(
        short_frequencies=row,
        long_frequencies=row / 3,
        ramp=0 * row,
        exponent=0 * row,
        threshold=threshold,
        long_multiplier=2.0,
    )


_FACTORS = {
    "short_factor": np.linspace(1.0, 1.5, HEAD_DIM // 2).tolist(),
    "long_factor": np.geomspace(1.1, 40.0, HEAD_DIM // 2).tolist(),
}
TABLES: dict[str, Callable[[], LengthTable]] = {
    "dynamic-ntk": lambda: table_of("dynamic-ntk", {}),
    "dynamic-ntk-4": lambda: table_of("dynamic-ntk", {"factor": 4.0}),
    "dynamic-yarn": lambda: table_of("dynamic-yarn", {}),
    "dynamic-yarn-mscales": lambda: table_of(
        "dynamic-yarn", {"mscale": 0.707, "mscale_all_dim": 1.3}
    ),
    "longrope": lambda: table_of("longrope", _FACTORS),
    "longrope-mscales": lambda: table_of(
        "longrope", {**_FACTORS, "short_mscale": 1.05, "long_mscale": 1.25}
    ),
}


_DTYPES = (ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.FLOAT)


def run_body(lengths: np.ndarray, tables: np.ndarray, scalars: np.ndarray) -> list[np.ndarray]:
    """One call with onnxruntime's own optimisation off; the table is an initializer."""
    values = [
        ir.Value(name=name, type=ir.TensorType(dtype))
        for name, dtype in zip(SPEC.inputs, _DTYPES, strict=True)
    ]
    values[0].shape = ir.Shape(["batch"])
    for value, array in zip(values[1:], (tables, scalars), strict=True):
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
    node = ir.node(SPEC.name, values, PLUGIN_ATTRIBUTES, domain=DOMAIN, num_outputs=2)
    for value, name in zip(node.outputs, SPEC.outputs, strict=True):
        value.name, value.type = f"{name}.out", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        values[:1],
        node.outputs,
        nodes=[node],
        initializers=values[1:],
        opset_imports={"": 23, DOMAIN: 1},
        name="g",
    )
    model = ir.to_proto(ir.Model(graph, ir_version=10, functions=[rotary_frequencies()]))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"rope_length": lengths})
