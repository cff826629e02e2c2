"""RotaryFrequencies' body in a stock onnxruntime; oracle: ops.reference in float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ctx_export.ops.frequencies import rotary_frequencies
from ctx_export.ops.reference import rotary_frequencies as reference
from ctx_export.ops.spec import DOMAIN, PLUGIN_ATTRIBUTES
from ctx_export.ops.spec import ROTARY_FREQUENCIES as SPEC
from tests.kernels.frequency_cases import LENGTHS, TABLES, wide_table

DTYPES = (ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.FLOAT)


def run(lengths: np.ndarray, tables: np.ndarray, scalars: np.ndarray) -> list[np.ndarray]:
    """One call with onnxruntime's own optimisation off; the table is an initializer."""
    values = [
        ir.Value(name=name, type=ir.TensorType(dtype))
        for name, dtype in zip(SPEC.inputs, DTYPES, strict=True)
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


@pytest.mark.parametrize("name", TABLES)
def test_body_matches_float64(name):
    tables, scalars = TABLES[name]().packed()
    lengths = np.array(LENGTHS)
    inv_freq, multiplier = run(lengths, tables, scalars)
    expected, expected_multiplier = reference(lengths, tables, scalars)
    assert inv_freq.dtype == multiplier.dtype == np.float32
    assert inv_freq.shape == expected.shape and multiplier.shape == (len(LENGTHS),)
    # One rounding to float32 is half a unit in the last place, 2^-24.
    np.testing.assert_allclose(inv_freq, expected, rtol=2.0**-24 * 1.000001, atol=0)
    np.testing.assert_allclose(multiplier, expected_multiplier, rtol=2.0**-24 * 1.000001, atol=0)


@pytest.mark.parametrize("name", TABLES)
def test_reference_matches_the_table_that_was_packed(name):
    """The operator's pairs keep 48 bits, and growth of 2^33 tokens leaves 2^-40 of them."""
    table = TABLES[name]()
    inv_freq, multiplier = reference(np.array(LENGTHS), *table.packed())
    for row, length in enumerate(LENGTHS):
        expected, expected_multiplier = table.at(length)
        np.testing.assert_allclose(inv_freq[row], expected, rtol=2.0**-40, atol=0)
        assert multiplier[row] == pytest.approx(expected_multiplier, rel=2.0**-40)


@pytest.mark.parametrize("threshold", [(1 << 24) + 1, (1 << 40) + 1])
def test_the_switch_is_exact_past_float32(threshold):
    tables, scalars = wide_table(threshold).packed()
    _, multiplier = run(np.array([threshold - 1, threshold, threshold + 1]), tables, scalars)
    np.testing.assert_array_equal(multiplier, [1.0, 1.0, 2.0])


@pytest.mark.parametrize("name", TABLES)
def test_one_row_is_that_of_a_batch(name):
    packed = TABLES[name]().packed()
    inv_freq, multiplier = run(np.array(LENGTHS), *packed)
    for row, length in enumerate(LENGTHS):
        one, one_multiplier = run(np.array([length]), *packed)
        np.testing.assert_array_equal(one[0], inv_freq[row])
        assert one_multiplier[0] == multiplier[row]


def test_an_empty_batch_is_fine():
    inv_freq, multiplier = run(np.zeros(0, np.int64), *TABLES["dynamic-ntk"]().packed())
    assert inv_freq.shape == (0, 40) and multiplier.shape == (0,)
