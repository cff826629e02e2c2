"""Engines from hand-written graphs, built by the real TensorRT-RTX builder without a GPU.

Oracles: the nodes written here, the manifest rows written here, and the runtime's own answers.
"""

from __future__ import annotations

import errno
import struct
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from ctx_export.build import engine
from ctx_export.build.engine import (
    EngineRequest,
    build_engine,
    link_libraries,
    plugin_library,
)
from ctx_export.build.engine_network import BuildError, _check_plugin_layers, context_nodes
from ctx_export.build.engine_profiles import Limits
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import TensorInfo
from ctx_export.ops.attention import AttentionVariant, sink_window_attention
from ctx_export.ops.rotary import scaled_rotary_embedding
from ctx_export.ops.spec import DOMAIN, PLUGIN_ATTRIBUTES

HEADS, KV_HEADS, HEAD_DIM, WIDTH = 6, 2, 80, 16
ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
}
SHARD = "model-00001-of-00001.safetensors"


@dataclass
class Stages:
    names: list[str]

    def stage(self, name: str) -> None:
        self.names.append(name)

    def update(self, done: int, total: int) -> None:
        assert 0 < done <= total


def tensors(dtype: str) -> tuple[TensorInfo, ...]:
    """The contract of one attention layer."""
    cache = ("batch", KV_HEADS, "slots", HEAD_DIM)
    rows = [("hidden", dtype, ("batch", "tokens", WIDTH), "input_ids")]
    rows += [(name, "int64", ("batch",), name) for name in ("seen", "new")]
    rows += [(f"past.{part}", dtype, cache, f"past_{part}") for part in ("key", "value")]
    rows += [("y", dtype, ("batch", HEADS, "tokens", HEAD_DIM), "logits")]
    rows += [(f"present.{part}", dtype, cache, f"present_{part}") for part in ("key", "value")]
    return tuple(TensorInfo(name=n, dtype=d, shape=s, role=r) for n, d, s, r in rows)


def projection(name: str, heads: int) -> list[onnx.NodeProto]:
    """hidden [B,S,W] to name [B,heads,S,D] by the weight w.name."""
    return [
        helper.make_node("MatMul", ["hidden", f"w.{name}"], [f"{name}.flat"]),
        helper.make_node("Reshape", [f"{name}.flat", f"shape.{heads}"], [f"{name}.split"]),
        helper.make_node("Transpose", [f"{name}.split"], [name], perm=[0, 2, 1, 3]),
    ]


def context_node(operator: str, inputs: list[str], outputs: list[str], **attributes):
    return helper.make_node(
        operator,
        inputs,
        outputs,
        name=f"site.{outputs[0]}",
        domain=DOMAIN,
        **{**attributes, **PLUGIN_ATTRIBUTES},
    )


def nodes() -> list[onnx.NodeProto]:
    """Projections, positions, two rotations and one attention."""
    rotation = {"rotary_dim": HEAD_DIM, "interleaved": 0}
    tables = ["positions", "inv_freq", "multiplier"]
    return [
        *projection("q", HEADS),
        *projection("k", KV_HEADS),
        *projection("v", KV_HEADS),
        helper.make_node("Shape", ["hidden"], ["tokens"], start=1, end=2),
        helper.make_node("Squeeze", ["tokens"], ["token_count"]),
        helper.make_node("Range", ["zero", "token_count", "one"], ["row"]),
        helper.make_node("Unsqueeze", ["seen", "axis"], ["seen.column"]),
        helper.make_node("Add", ["seen.column", "row"], ["positions"]),
        context_node("ScaledRotaryEmbedding", ["q", *tables], ["q.rotated"], **rotation),
        context_node("ScaledRotaryEmbedding", ["k", *tables], ["k.rotated"], **rotation),
        context_node(
            "SinkWindowAttention",
            ["q.rotated", "k.rotated", "v", "past.key", "past.value", "seen", "new"],
            ["y", "present.key", "present.value"],
            sinks=0,
            window=0,
            scale=HEAD_DIM**-0.5,
            softcap=0.0,
            alias=1,
            bounded=0,
            rotary_dim=0,
            interleaved=0,
            rotation=0,
            sink_position=0,
            layout=0,
            optional_inputs="",
        ),
    ]


def constants() -> list[onnx.TensorProto]:
    inv_freq = 10000.0 ** (-np.arange(0, HEAD_DIM, 2, dtype=np.float64) / HEAD_DIM)
    arrays = {
        "inv_freq": inv_freq.astype(np.float32)[None],
        "multiplier": np.ones(1, np.float32),
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis": np.array([1]),
        f"shape.{HEADS}": np.array([0, 0, HEADS, HEAD_DIM]),
        f"shape.{KV_HEADS}": np.array([0, 0, KV_HEADS, HEAD_DIM]),
    }
    return [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]


def weights(directory: Path, dtype: str) -> list[onnx.TensorProto]:
    """Weights as external data inside a safetensors shard, as packages have them."""
    size = {"float32": 4, "float16": 2, "bfloat16": 2}[dtype]
    found, data = [], b""
    header = b"{}      "
    base = 8 + len(header)
    for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        count = WIDTH * heads * HEAD_DIM
        tensor = TensorProto(
            name=f"w.{name}",
            data_type=ELEMENTS[dtype],
            dims=[WIDTH, heads * HEAD_DIM],
            data_location=TensorProto.EXTERNAL,
        )
        where = {"location": SHARD, "offset": base + len(data), "length": count * size}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        found.append(tensor)
        data += bytes(count * size)
    (directory / SHARD).write_bytes(struct.pack("<Q", len(header)) + header + data)
    return found


def write_model(directory: Path, dtype: str = "float32", change=None) -> Path:
    """model.onnx and its shard in `directory`; `change` may edit the graph before it is saved."""
    values = {
        t.name: helper.make_tensor_value_info(t.name, ELEMENTS[t.dtype], t.shape)
        for t in tensors(dtype)
    }
    outputs = ("y", "present.key", "present.value")
    graph = helper.make_graph(
        nodes(),
        "layer",
        [value for name, value in values.items() if name not in outputs],
        [values[name] for name in outputs],
        [*constants(), *weights(directory, dtype)],
    )
    if change is not None:
        change(graph)
    bodies = (scaled_rotary_embedding(), sink_window_attention(AttentionVariant()))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)],
        functions=[ir.to_proto(body) for body in bodies],
        ir_version=10,
    )
    path = directory / "model.onnx"
    onnx.save(model, path)
    return path


def request(file: Path, dtype: str = "float32", **changes) -> EngineRequest:
    base = EngineRequest(
        model=file,
        engine=file.with_name("model.engine"),
        plugin_library=plugin_library(),
        runtime="tensorrt-rtx",
        io=tensors(dtype),
        max_batch=2,
        max_chunk=7,
        capacity=1031,
    )
    return replace(base, **changes)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_ctx_node_becomes_a_plugin_layer(tmp_path, dtype):
    stages = Stages([])
    info = build_engine(request(write_model(tmp_path, dtype), dtype), stages)
    assert info.plugin_layers == ("site.q.rotated", "site.k.rotated", "site.y")
    assert info.runtime == "tensorrt-rtx"
    assert info.bytes == (tmp_path / "model.engine").stat().st_size > 0
    assert stages.names == ["parsing", "building engine"]
    assert info.profiles["prefill"]["past.key"] == [
        [1, KV_HEADS, 1, HEAD_DIM],
        [1, KV_HEADS, 1031, HEAD_DIM],
        [2, KV_HEADS, 1031, HEAD_DIM],
    ]
    assert info.profiles["decode"]["hidden"][2] == [2, 1, WIDTH]
    data = (tmp_path / "model.engine").read_bytes()
    for operator in (b"SinkWindowAttention", b"ScaledRotaryEmbedding"):
        assert operator in data


def test_a_node_left_to_its_function_body_is_named(tmp_path):
    """The parser inlines a node whose plugin version nobody registered."""

    def wrong_version(graph: onnx.GraphProto) -> None:
        (node,) = (n for n in graph.node if n.name == "site.k.rotated")
        next(a for a in node.attribute if a.name == "plugin_version").s = b"7"

    model = write_model(tmp_path, change=wrong_version)
    with pytest.raises(UserError, match=r"2 plugin layers for 3 ctx nodes.*site\.k\.rotated"):
        build_engine(request(model))
    assert not (tmp_path / "model.engine").exists()


def test_a_parse_without_plugins_is_refused_with_all_nodes(tmp_path):
    """Functions alone parse well; the count must catch it."""
    import tensorrt_rtx as trt

    model = write_model(tmp_path)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(model))
    with pytest.raises(BuildError, match="0 plugin layers for 3 ctx nodes") as caught:
        _check_plugin_layers(trt, network, context_nodes(model), Path("lib.so"))
    for name in ("site.q.rotated", "site.k.rotated", "site.y"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plugin_library": Path("absent.so")}, "plugin library absent.so does not exist"),
        ({"model": Path("absent.onnx")}, "model absent.onnx does not exist"),
        ({"io": tensors("float16")}, "not those of the manifest: hidden, past.key"),
        ({"io": tensors("float32")[1:]}, "not those of the manifest: hidden"),
        ({"time_limit_s": 0.01}, "took longer than 0.01 s"),
    ],
)
def test_a_request_that_cannot_work_leaves_no_engine(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        build_engine(request(write_model(tmp_path), **change))
    assert not (tmp_path / "model.engine").exists()


def test_a_library_that_is_none_is_named(tmp_path):
    library = tmp_path / "text.so"
    library.write_text("not a library")
    with pytest.raises(UserError, match=r"text\.so cannot be loaded.*make setup"):
        build_engine(request(write_model(tmp_path), plugin_library=library))


def test_an_operator_the_parser_does_not_know_is_named(tmp_path):
    def unknown(graph: onnx.GraphProto) -> None:
        graph.node[0].op_type = "Unheard"

    with pytest.raises(UserError, match="Unheard"):
        build_engine(request(write_model(tmp_path, change=unknown)))


def test_a_missing_shard_is_an_error(tmp_path):
    model = write_model(tmp_path)
    (tmp_path / SHARD).unlink()
    with pytest.raises(UserError, match=r"TensorRT-RTX"):
        build_engine(request(model))


def test_an_unknown_runtime_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="'onnx' is not a runtime with engines"):
        build_engine(request(write_model(tmp_path), runtime="onnx"))


def test_versioned_libraries_get_their_plain_names(tmp_path):
    link_libraries("tensorrt_rtx_libs", tmp_path / "lib")
    link = tmp_path / "lib" / "libtensorrt_rtx.so"
    assert link.resolve().name.startswith("libtensorrt_rtx.so.")
    assert link.resolve().is_file()


def test_a_package_that_is_not_installed_gives_an_empty_folder(tmp_path):
    link_libraries("no_such_package_libs", tmp_path / "lib")
    assert list((tmp_path / "lib").iterdir()) == []


def test_limits_reach_the_request(tmp_path):
    built = request(tmp_path / "model.onnx", plugin_library=tmp_path)
    assert built.limits() == Limits(max_batch=2, max_chunk=7, capacity=1031)


def test_a_full_disk_is_said_to_be_full(tmp_path):
    """/dev/full answers every write as a full disk does."""
    (tmp_path / "model.engine").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        build_engine(request(write_model(tmp_path)))
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "model.engine").is_symlink()


def test_a_builder_that_ends_its_process_becomes_an_error(tmp_path, monkeypatch):
    """Without the plain library name the parser calls std::terminate at the first plugin."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(engine, "link_libraries", lambda package, directory: directory.mkdir())
    with pytest.raises(UserError, match=r"crashed \(SIGABRT\).*last words: .*--engine none"):
        build_engine(request(write_model(tmp_path)))
    assert not (tmp_path / "model.engine").exists()
    assert list(scratch.iterdir()) == []


def test_a_build_leaves_nothing_but_the_engine(tmp_path, monkeypatch):
    scratch, place = tmp_path / "scratch", tmp_path / "package"
    scratch.mkdir()
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    build_engine(request(write_model(place)))
    assert sorted(p.name for p in place.iterdir()) == [SHARD, "model.engine", "model.onnx"]
    assert list(scratch.iterdir()) == []
