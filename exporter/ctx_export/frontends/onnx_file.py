"""A decoder from an .onnx file that another tool wrote, in place of tracing a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from ctx_export.core.errors import UserError
from ctx_export.frontends.checkpoint import Checkpoint, read_checkpoint
from ctx_export.frontends.checkpoint import locate as locate_checkpoint
from ctx_export.frontends.normalise import normalised
from ctx_export.frontends.onnx_interface import check_interface, name_dimensions
from ctx_export.frontends.onnx_proto import read_proto
from ctx_export.frontends.onnx_spec import Beside, file_spec
from ctx_export.frontends.source import OnnxFile, Source

SUFFIX = ".onnx"
# Operators over weights of fewer bits than the precision's, and those that round activations.
_ROUNDING = frozenset(
    ("DynamicQuantizeLinear", "QuantizeLinear", "QLinearMatMul", "MatMulInteger")
)
_QUANTISED = _ROUNDING | {"MatMulNBits", "MatMulBnb4", "QMoE", "DequantizeLinear"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxGraph:
    """An .onnx file's graph, normalised, before anything is known about its model."""

    model: ir.Model
    file: OnnxFile


def is_onnx_file(model: str) -> bool:
    """Whether MODEL names an .onnx file rather than a checkpoint."""
    return Path(model).suffix.lower() == SUFFIX and not Path(model).is_dir()


def read(path: Path, reference: str | None = None, original_context: int | None = None) -> Source:
    """The decoder of an .onnx file, without reading a weight.

    What the file does not state, such as the scaling of its rotation, comes from the config.json
    of the checkpoint `reference`, else from one beside the file, else from genai_config.json there
    and from the graph; then `original_context` must be given where nothing states it.
    Raises UserError for a file that is damaged, unsafe, or no decoder that can be exported, and
    where graph and config contradict each other.
    """
    checkpoint = _reference(path, reference)
    graph = read_graph(path)
    beside = Beside.of(path, checkpoint)
    spec, tables = file_spec(graph.model.graph, beside, original_context)
    return Source(
        model=graph.model,
        spec=spec,
        precision=spec.precision,
        checkpoint=checkpoint,
        file=replace(graph.file, tables=tables),
    )


def read_graph(path: Path) -> OnnxGraph:
    """The graph of an .onnx file in normal form; raises UserError as `read` does."""
    proto = read_proto(path)
    check_interface(path, proto.graph)
    name_dimensions(proto)
    used = {node.op_type for node in proto.graph.node}
    file = OnnxFile(
        path=path,
        producer=" ".join(filter(None, (proto.producer_name, proto.producer_version))),
        opset=max(
            entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")
        ),
        quantised=bool(used & _QUANTISED),
        rounds_activations=bool(used & _ROUNDING),
    )
    return OnnxGraph(model=normalised(path, proto), file=file)


def _reference(path: Path, reference: str | None) -> Checkpoint | None:
    if reference is None:
        return None
    if is_onnx_file(reference):
        raise UserError(
            f"reference {reference} is an ONNX file: give the checkpoint that {path.name} was "
            "made from"
        )
    return read_checkpoint(locate_checkpoint(reference))
