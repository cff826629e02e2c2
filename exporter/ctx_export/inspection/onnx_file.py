"""What an ONNX file computes: its attentions, the tables it rotates by, and whether those are the
ones that its config.json asks for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.inspection.files import weight_files

if TYPE_CHECKING:
    import onnx

    from ctx_export.core.model_spec import ModelSpec
    from ctx_export.frontends.onnx_file import OnnxGraph
    from ctx_export.frontends.onnx_spec import Beside
    from ctx_export.inspection.question import Question
    from ctx_export.passes.locate import Site

_QUANTISED = ("MatMulNBits", "MatMulInteger", "QLinearMatMul", "DequantizeLinear", "MatMulBnb4")
_CACHE_WORDS = ("past", "cache")


def inspect_onnx(path: Path, question: Question) -> dict[str, Any]:
    """A file's header, sites, tables and weights; where a config.json belongs to it, whether both
    agree; what the method in question would change. Raises UserError for a file that is damaged or
    unsafe to read; one that merely cannot be exported is reported with the reason."""
    from ctx_export.frontends.onnx_proto import read_proto

    report = {"kind": "onnx", "path": str(path), **_header(path, read_proto(path))}
    found = _read(path, question)
    sites = found.pop("sites")
    report["layers"] = [_layer(site) for site in sites]
    report["tables"] = _tables(sites, found.pop("precision"))
    report["runtimes"] = []
    return {**report, **found}


def _read(path: Path, question: Question) -> dict[str, Any]:
    """`sites`, as far as they were found, and what follows from them: `tables_agree` and `export`,
    None or why not, and `change`."""
    from ctx_export.frontends.onnx_file import read_graph
    from ctx_export.frontends.onnx_spec import file_spec
    from ctx_export.passes.locate import find_sites

    found: dict[str, Any] = {
        "sites": (),
        "precision": "fp32",
        "tables_agree": None,
        "export": None,
    }
    try:
        beside = _beside(path, question.reference)
        graph = read_graph(path)
        found["sites"] = find_sites(graph.model.graph)
        found["precision"] = _precision(found["sites"])
        found["tables_agree"] = _agreement(found["sites"], beside, found["precision"])
        original = question.scaling.get("original_context")
        spec, _ = file_spec(graph.model.graph, beside, original)
    except UserError as error:
        agreement = found["tables_agree"]
        if agreement is None or agreement["agree"]:
            found["export"] = str(error)
        if question.about_a_method:
            raise UserError(f"what a method would change cannot be told: {error}") from None
        return found
    if question.about_a_method:
        found["change"] = _change(graph, spec, beside, question)
    return found


def _beside(path: Path, reference: Path | None) -> Beside:
    """The config that belongs to the file: the reference's, else one beside it."""
    from ctx_export.frontends.checkpoint import read_config
    from ctx_export.frontends.onnx_spec import CONFIG_NAME, Beside

    beside = Beside.of(path, None)
    if reference is None:
        return beside
    return Beside(
        path=path,
        config=read_config(reference),
        config_name=f"{reference.name}/{CONFIG_NAME}",
        genai=beside.genai,
    )


def _agreement(sites: Sequence[Site], beside: Beside, precision: str) -> dict[str, Any] | None:
    """Whether the graph rotates as the config says; None where there is no config."""
    from ctx_export.frontends.checkpoint import model_spec
    from ctx_export.frontends.onnx_tables import exact_tables

    if beside.config is None or not sites:
        return None
    spec = model_spec(beside.config, precision)
    if spec.layers != len(sites):
        return None
    try:
        exact_tables(sites, spec, beside.config_name)
    except UserError as error:
        return {"agree": False, "reason": str(error)}
    turning = [site for site in sites if site.query.rotary_dim]
    read = sum(site.query.table is not None for site in turning)
    return {
        "agree": True,
        "reason": f"the tables of {read} of {len(turning)} layers that rotate were read off and "
        f"are those of {beside.config_name} ({spec.rope.method})",
    }


def _change(
    graph: OnnxGraph, spec: ModelSpec, beside: Beside, question: Question
) -> dict[str, Any]:
    from ctx_export.inspection.change import describe_change

    change = describe_change(beside.config or {}, spec, question.recipe(graph.file.path))
    change.pop("new_config")
    if beside.config is None and not change["inexpressible"]:
        change |= {"config": None, "inexpressible": "no config.json belongs to the file"}
    return change


def _header(path: Path, proto: onnx.ModelProto) -> dict[str, Any]:
    """What the file says of itself."""
    graph = proto.graph
    inputs = [value.name for value in graph.input]
    caches = [name for name in inputs if any(word in name for word in _CACHE_WORDS)]
    counted = Counter(node.op_type for node in graph.node if node.op_type in _QUANTISED)
    return {
        "producer": " ".join(filter(None, (proto.producer_name, proto.producer_version)))
        or "not stated",
        "opsets": [[entry.domain, entry.version] for entry in proto.opset_import],
        "nodes": len(graph.node),
        "inputs": inputs,
        "outputs": [value.name for value in graph.output],
        "cache": f"{len(caches)} inputs, such as {caches[0]}" if caches else "no inputs",
        "weights": {
            "inside": sum(t.ByteSize() for t in graph.initializer if not t.external_data),
            "external": weight_files(path.parent, _external_files(path.parent, graph)),
            "quantised": dict(counted),
        },
    }


def _external_files(directory: Path, graph: onnx.GraphProto) -> list[str]:
    """Files of the weights that are not inside, relative to the model's directory."""
    places = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(os.path.relpath(directory / place, directory) for place in places)


def _layer(site: Site) -> dict[str, Any]:
    heads, kv_heads, head_dim = site.sizes
    return {
        "layer": site.layer,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "rotary_dim": site.query.rotary_dim,
        "layout": _layout(site),
        "window": site.window,
    }


def _layout(site: Site) -> str:
    dims, head_dim = site.query.rotary_dim, site.sizes[2]
    if not dims:
        return "no positions"
    pairs = "interleaved pairs" if site.query.interleaved else "half-split pairs"
    return pairs if dims == head_dim else f"{pairs} of {dims} dims"


def _tables(sites: Sequence[Site], precision: str) -> list[dict[str, Any]]:
    """The tables that differ, each with its layers."""
    from ctx_export.frontends.onnx_tables import agrees, plain_base

    groups: list[tuple[Any, list[int]]] = []
    for site in sites:
        table = site.query.table
        if table is None:
            continue
        for known, layers in groups:
            if agrees(table, known.inv_freq, known.multiplier, precision):
                layers.append(site.layer)
                break
        else:
            groups.append((table, [site.layer]))
    return [
        {
            "layers": layers,
            "frequencies": len(table.inv_freq),
            "highest": float(np.max(table.inv_freq)),
            "lowest": float(np.min(table.inv_freq)),
            "multiplier": table.multiplier,
            "base": plain_base(table, precision),
            "inv_freq": [float(value) for value in table.inv_freq],
        }
        for table, layers in groups
    ]


def _precision(sites: Sequence[Site]) -> str:
    import onnx_ir as ir

    names: Mapping[Any, str] = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
    types = {site.attention.k.dtype for site in sites}
    return names.get(types.pop(), "fp32") if len(types) == 1 else "fp32"
