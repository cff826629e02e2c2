"""Weights of an ONNX file in a package: linked where they lie, never written through."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ctx_export.build.link import link_files
from ctx_export.build.weights import Storing, store_weights
from ctx_export.core.progress import SilentProgress


def graph_of(*tensors: ir.TensorProtocol) -> ir.Model:
    """A graph that returns its weights."""
    values = []
    for tensor in tensors:
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype))
        value.shape, value.const_value = ir.Shape(tensor.shape.numpy()), tensor
        values.append(value)
    nodes = [ir.node("Identity", [value]) for value in values]
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"out{index}"
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([], outputs, nodes=nodes, initializers=values, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def stored(model: ir.Model, directory: Path) -> tuple[onnx.ModelProto, tuple[str, ...], str]:
    """The saved graph with the bytes that its weights refer to, read as the format says."""
    directory.mkdir(exist_ok=True)
    found = store_weights(
        model.graph, {}, directory, SilentProgress(), Storing(move_constants=True)
    )
    ir.save(model, directory / "model.onnx")
    proto = onnx.load(directory / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            content = (directory / entries["location"]).read_bytes()[int(entries["offset"]) :]
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = content[: int(entries["length"])]
    return proto, found.files, found.storage


@pytest.mark.parametrize(
    ("dtype", "numpy_type"),
    [
        (ir.DataType.FLOAT, np.float32),
        (ir.DataType.FLOAT16, np.float16),
        (ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
        (ir.DataType.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (ir.DataType.INT8, np.int8),
        (ir.DataType.UINT8, np.uint8),
        (ir.DataType.INT4, ml_dtypes.int4),
        (ir.DataType.UINT4, ml_dtypes.uint4),
    ],
    ids=lambda value: value.name if isinstance(value, ir.DataType) else "",
)
def test_weights_inside_the_graph_leave_it_bit_by_bit(tmp_path, dtype, numpy_type):
    numbers = (np.arange(3 * 1111) % 7).reshape(3, 1111).astype(numpy_type)
    model = graph_of(ir.Tensor(numbers, dtype=dtype, name="w"))
    proto, files, storage = stored(model, tmp_path / "out")
    assert files == ("model.onnx.data",) and storage == "copied"
    (held,) = proto.graph.initializer
    found = onnx.numpy_helper.to_array(held)
    assert held.data_type == dtype.value
    np.testing.assert_array_equal(found.astype(np.float32), numbers.astype(np.float32))


def test_small_constants_stay_in_the_graph(tmp_path):
    model = graph_of(ir.Tensor(np.zeros(256, np.float32), name="w"))
    _, files, _ = stored(model, tmp_path / "out")
    assert files == () and not (tmp_path / "out" / "model.onnx.data").exists()


def external(directory: Path, name: str, numbers: np.ndarray) -> ir.ExternalTensor:
    (directory / name).write_bytes(b"\0" * 8 + numbers.tobytes())
    return ir.ExternalTensor(
        str(directory / name),
        8,
        numbers.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape(numbers.shape),
        name=name,
    )


def test_external_weights_are_linked_beside_those_that_are_written(tmp_path):
    numbers = np.arange(600, dtype=np.float32)
    model = graph_of(
        external(tmp_path, "model.onnx.data", numbers), ir.Tensor(numbers * 2, name="inside")
    )
    proto, files, storage = stored(model, tmp_path / "out")
    assert set(files) == {"model.onnx.data", "source1.model.onnx.data"} and storage == "copied"
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    np.testing.assert_array_equal(arrays["model.onnx.data"], numbers)
    np.testing.assert_array_equal(arrays["inside"], numbers * 2)
    assert (tmp_path / "model.onnx.data").stat().st_size == 8 + numbers.nbytes


@pytest.mark.parametrize("name", ["manifest.json", "report.md", "tokenizer.json", "model.onnx"])
def test_a_file_named_like_the_package_s_own_is_linked_under_another_name(tmp_path, name):
    source, out = tmp_path / name, tmp_path / "out"
    source.write_bytes(b"weights")
    out.mkdir()
    linked = link_files([source], out)[source]
    assert linked.name == f"source.{name}.data"
    (out / name).write_text("what the package writes")
    assert source.read_bytes() == b"weights"


def test_two_files_of_one_name_stay_two(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "weights.bin")
        files[-1].write_text(folder)
    linked = link_files(files, out)
    assert [(out / linked[file].name).read_text() for file in files] == ["a", "b"]


def test_a_package_may_have_weight_files_of_its_own(tmp_path):
    """onnx.load, since 1.23, and onnx.checker refuse data with several hard links."""
    source, out = tmp_path / "w.safetensors", tmp_path / "out"
    source.write_bytes(b"weights")
    out.mkdir()
    own = link_files([source], out, hard_links=False)[source]
    assert own.how in ("cloned", "copied")
    assert (out / own.name).stat().st_nlink == source.stat().st_nlink == 1
    assert (out / own.name).read_bytes() == b"weights"
    shared = link_files([source], out, {source.name})[source]
    links = {"cloned": 1, "linked": 2, "copied": 1}
    assert source.stat().st_nlink == links[shared.how]
    assert (out / shared.name).read_bytes() == b"weights"
