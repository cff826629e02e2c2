"""A foreign ONNX graph in the form that the passes know: one opset, no functions, constants
folded, inputs and output as a traced decoder has them. Weights are neither read nor copied."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from ctx_export.core.errors import UserError
from ctx_export.frontends.onnx_interface import INPUT_IDS, LOGITS, POSITION_IDS
from ctx_export.ops.builder import OPSET
from ctx_export.passes.folding import MOST_ELEMENTS, may_fold
from ctx_export.passes.shapes import settle_shapes
from ctx_export.passes.sizes import read_sizes_of_tokens

SMALL_BYTES = 1024  # constants up to here are read and folded, larger ones are weights
_KNOWN_DOMAINS = ("", "com.microsoft")
# onnxruntime's own operators that stand in the standard domain.
_UNLISTED = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
_SOURCE = "source."
# Values of a package's graph have these names.
_RESERVED = ("seen", "new", "logit_rows", "rope_length", "positions")
_RESERVED_PREFIXES = ("ctx.", "rope.", "cache.layer", "sink_positions.", "present.")
_NOISY = (
    "onnxscript.version_converter",
    "onnxscript.optimizer",
    "onnx_ir.passes.common.initializer_deduplication",
    "onnx_ir.passes.common.unused_removal",
)


def normalised(path: Path, proto: onnx.ModelProto) -> ir.Model:
    """`proto`, read from `path`, as an onnx-ir model that ends in logits alone.

    Raises UserError where an operator on the way to the logits has no known meaning, or the
    model cannot be converted.
    """
    with _quiet():
        try:
            model = ir.from_proto(proto)
            _name_standard_domain(model)
            common_passes.InlinePass()(model)
            _keep_logits_alone(model.graph)
            common_passes.RemoveUnusedNodesPass()(model)
            _check_operators(path, model)
            _prepare_constants(model)
            _convert(path, model)
            _lower(model)
            _optimise(model)
        except UserError:
            raise
        except Exception as error:  # the passes raise whatever a malformed node makes them raise
            raise UserError(
                f"{path} cannot be read as a decoder: {_root(error)}; check it with "
                "onnx.checker.check_model, or export it again"
            ) from error
    model.functions.clear()
    _type_inputs(path, model.graph)
    _free_names(model.graph)
    return model


def _lower(model: ir.Model) -> None:
    """Operators of onnxruntime's own that stand for several standard ones."""
    from importlib.util import find_spec

    if find_spec("ctx_export.frontends.contrib_operators") is not None:
        from importlib import import_module

        import_module("ctx_export.frontends.contrib_operators").lower(model)


def _name_standard_domain(model: ir.Model) -> None:
    """The standard domain has two names."""
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        version = graph.opset_imports.pop("ai.onnx", None)
        if version is not None:
            graph.opset_imports.setdefault("", version)
        for node in graph.all_nodes():
            if node.domain == "ai.onnx":
                node.domain = ""


def _keep_logits_alone(graph: ir.Graph) -> None:
    """Drop the other outputs, whose names a package needs, and inputs that are weights."""
    logits = next(value for value in graph.outputs if value.name == LOGITS)
    for value in graph.outputs:
        if value is not logits and not value.is_graph_input():
            value.name = f"{_SOURCE}{value.name}"
    graph.outputs.clear()
    graph.outputs.append(logits)
    for value in list(graph.inputs):
        if value.is_initializer():
            graph.inputs.remove(value)


def _check_operators(path: Path, model: ir.Model) -> None:
    """Every operator left has a meaning: one of the standard, or of onnxruntime's own domain."""
    version = model.graph.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        if node.domain not in _KNOWN_DOMAINS:
            raise UserError(
                f"{path}: {node.op_type} ({_output(node)}) is of the domain {node.domain}, whose "
                "operators have no known meaning: export the model without custom operators, or "
                "with functions of standard ones for them"
            )
        listed = node.op_type in _UNLISTED or onnx.defs.has(node.op_type, version, "")
        if node.domain == "" and not listed:
            raise UserError(
                f"{path}: {node.op_type} ({_output(node)}) is no standard operator of opset "
                f"{version}: export the model again"
            )


def _prepare_constants(model: ir.Model) -> None:
    """Constants of every size as initializers, small external ones in memory."""
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=16)(model)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= SMALL_BYTES:
            held = np.array(tensor.numpy())
            value.const_value = ir.Tensor(held, dtype=tensor.dtype, name=tensor.name)


def _convert(path: Path, model: ir.Model) -> None:
    from onnxscript.version_converter import convert_version

    before = model.graph.opset_imports.get("")
    convert_version(model, OPSET, fallback=True)
    after = model.graph.opset_imports.get("")
    if after != OPSET:
        raise UserError(
            f"{path} is of opset {before} and cannot be converted to {OPSET}: export it again "
            "with an opset from 14 to 24"
        )


def _optimise(model: ir.Model) -> None:
    """Fold constants and merge what is the same, with the weights out of reach."""
    graph = model.graph
    weights = {
        name: value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > SMALL_BYTES
    }
    for name in weights:
        graph.initializers[name].const_value = None
    _fold(model)
    graph.outputs[0].shape = _logits_shape(graph.outputs[0])
    settle_shapes(model)
    ids = next(value for value in graph.inputs if value.name == INPUT_IDS)
    read_sizes_of_tokens(graph, ids)
    _fold(model)
    settle_shapes(model)
    _size_caches(graph)
    for name, value in graph.initializers.items():
        if value.const_value is None:
            value.const_value = weights[name]


def _size_caches(graph: ir.Graph) -> None:
    """The head dimension of cache inputs that leave it open: that of the attentions' keys."""
    keys = [node.inputs[1] for node in graph if node.op_type in ("Attention", "CausalAttention")]
    dims = {key.shape[3] for key in keys if key is not None and key.shape and len(key.shape) == 4}
    dim = dims.pop() if len(dims) == 1 else None
    for value in graph.inputs:
        shape = value.shape
        if isinstance(dim, int) and shape is not None and len(shape) == 4:
            value.shape = ir.Shape([*shape[:3], shape[3] if isinstance(shape[3], int) else dim])


def _fold(model: ir.Model) -> None:
    import onnxscript.optimizer

    onnxscript.optimizer.optimize_ir(model, output_size_limit=MOST_ELEMENTS, should_fold=may_fold)


def _logits_shape(logits: ir.Value) -> ir.Shape:
    """[batch, tokens, vocabulary]: exporters leave the first two without their names."""
    vocab = logits.shape[-1] if logits.shape is not None and len(logits.shape) == 3 else "vocab"
    return ir.Shape(("batch", "tokens", vocab if isinstance(vocab, int) else "vocab"))


def _type_inputs(path: Path, graph: ir.Graph) -> None:
    """input_ids and position_ids first, int64; what read them in another type reads a cast."""
    by_name = {value.name: value for value in graph.inputs}
    if not by_name[INPUT_IDS].uses():
        raise UserError(f"{path}: nothing on the way to the logits reads {INPUT_IDS}")
    shape = ir.Shape(("batch", "tokens"))
    made = []
    for name in (INPUT_IDS, POSITION_IDS):
        old = by_name.get(name)
        if old is not None and old.dtype is ir.DataType.INT64:
            made.append(old)
            continue
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=shape)
        made.append(value)
        if old is not None:
            _cast(graph, value, old)
    others = [value for value in graph.inputs if value.name not in (INPUT_IDS, POSITION_IDS)]
    graph.inputs.clear()
    graph.inputs.extend([*made, *others])


def _cast(graph: ir.Graph, value: ir.Value, old: ir.Value) -> None:
    node = ir.node("Cast", [value], {"to": old.dtype}, name=f"{_SOURCE}{value.name}")
    out = node.outputs[0]
    out.name, out.type, out.shape = f"{_SOURCE}{value.name}", old.type, old.shape
    ir.convenience.replace_all_uses_with(old, out)
    graph.insert_before(graph[0], [node])


def _free_names(graph: ir.Graph) -> None:
    """Leave the names of a package's own values to it."""
    kept = {*graph.inputs, *graph.outputs}
    for value in (
        *graph.initializers.values(),
        *(v for n in graph.all_nodes() for v in n.outputs),
    ):
        name = value.name or ""
        if value not in kept and (name in _RESERVED or name.startswith(_RESERVED_PREFIXES)):
            value.name = f"{_SOURCE}{name}"


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries warn of is checked here."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _output(node: ir.Node) -> Any:
    return node.outputs[0].name if node.outputs else node.name


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
