"""The model that an engine is built from: the package's own, or a copy in standard operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

_STEM = ".engine-model"
_LEAST_BYTES = 1024  # smaller tensors stay inside the file


@contextmanager
def engine_model(model: Path) -> Iterator[Path]:
    """`model`, or while the engine is built a copy beside it whose operators an engine's parser
    knows. Weights that stay as they are remain where they lie; raises UserError where an operator
    has no standard form."""
    from ctx_export.frontends.engine_operators import is_foreign, lower_for_engine

    graph = ir.load(model)
    if not any(is_foreign(node) for node in graph.graph.all_nodes()):
        yield model
        return
    copy, data = (model.with_name(f"{_STEM}{suffix}") for suffix in (".onnx", ".data"))
    try:
        lower_for_engine(graph)
        _write_changed(graph, data)
        ir.save(graph, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)
        data.unlink(missing_ok=True)


def _write_changed(model: ir.Model, data: Path) -> None:
    """Move what lies in no file yet to `data`, tensor by tensor."""
    values = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.nbytes >= _LEAST_BYTES
    ]
    tensors = [value.const_value for value in values if value.const_value is not None]
    external = ir.external_data.convert_tensors_to_external(tensors, data.parent, data.name)
    for value, tensor in zip(values, external, strict=True):
        value.const_value = tensor
