"""Weights of a package: referenced in the checkpoint's shards, or converted tensor by tensor."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ctx_export.core.errors import UserError
from ctx_export.core.progress import Progress
from ctx_export.frontends.shards import JoinedTensor, Tensor, TensorLocation

DATA_NAME = "model.onnx.data"
_ALIGNMENT = 4096  # bytes; lets a runtime map tensors
_STEP = 1 << 24  # elements converted at once
_NUMPY: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_STORED = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """The manifest's `weights` entry."""

    files: tuple[str, ...]
    storage: str  # linked, copied, converted


def store_weights(
    graph: ir.Graph, weights: Mapping[str, Tensor], directory: Path, progress: Progress
) -> StoredWeights:
    """Give every weight of `graph` its external data in `directory`.

    Shards are hard-linked where no weight they hold changes type (copied across file systems);
    weights that change type or are kept in pieces are written into one data file. Never holds more
    than a piece of one tensor.
    """
    _check_data(graph, weights)
    used = {name: weights[name] for name, v in graph.initializers.items() if name in weights}
    same = {
        name: loc
        for name, loc in used.items()
        if isinstance(loc, TensorLocation) and _STORED[_dtype(graph, name)] == loc.dtype
    }
    changed = {name: loc for name, loc in used.items() if name not in same}
    files = _link_shards({loc.file for loc in same.values()}, directory)
    for name, location in same.items():
        _refer(graph, name, location.file.name, location.offset, location.length)
    if changed:
        _convert(graph, changed, directory / DATA_NAME, progress)
    names = tuple(sorted(files) + ([DATA_NAME] if changed else []))
    storage = "converted" if changed else "copied" if "copied" in files.values() else "linked"
    return StoredWeights(files=names, storage=storage)


def _check_data(graph: ir.Graph, weights: Mapping[str, Tensor]) -> None:
    """Raise UserError where the graph reads a tensor that nothing gives numbers to."""
    for name, value in graph.initializers.items():
        if value.const_value is None and name not in weights:
            raise UserError(
                f"the decoder reads the constant {name}, whose numbers are neither in the "
                "checkpoint nor known to transformers before it loads one: this decoder needs "
                "support of its own"
            )


def _dtype(graph: ir.Graph, name: str) -> ir.DataType:
    dtype = graph.initializers[name].dtype
    assert dtype is not None
    return dtype


def _link_shards(shards: set[Path], directory: Path) -> dict[str, str]:
    """Name → linked or copied."""
    done = {}
    for shard in sorted(shards):
        target = directory / shard.name
        try:
            os.link(shard.resolve(), target)
            done[shard.name] = "linked"
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            shutil.copyfile(shard, target)
            done[shard.name] = "copied"
    return done


def _refer(graph: ir.Graph, name: str, file: str, offset: int, length: int) -> None:
    value = graph.initializers[name]
    assert value.dtype is not None and isinstance(value.shape, ir.Shape)
    value.const_value = ir.ExternalTensor(
        file, offset, length, value.dtype, shape=value.shape, name=name
    )


def _convert(
    graph: ir.Graph, weights: Mapping[str, Tensor], path: Path, progress: Progress
) -> None:
    total = len(weights)
    with path.open("wb") as out:
        for done, (name, location) in enumerate(weights.items(), 1):
            out.seek(-(-out.tell() // _ALIGNMENT) * _ALIGNMENT)
            offset = out.tell()
            target = _NUMPY[_STORED[_dtype(graph, name)]]
            pieces = location.pieces if isinstance(location, JoinedTensor) else (location,)
            for piece in pieces:
                _convert_tensor(name, piece, target, out)
            _refer(graph, name, path.name, offset, out.tell() - offset)
            progress.update(done, total)


def _convert_tensor(name: str, location: TensorLocation, target: np.dtype[Any], out: Any) -> None:
    if location.dtype not in _NUMPY:
        raise UserError(f"tensor {name} is of type {location.dtype}: it cannot be converted")
    source = _NUMPY[location.dtype]
    count = location.length // source.itemsize
    with location.file.open("rb") as file:
        file.seek(location.offset)
        for start in range(0, count, _STEP):
            size = min(_STEP, count - start)
            piece = np.frombuffer(file.read(size * source.itemsize), source)
            with np.errstate(over="ignore"):
                converted = piece.astype(np.float32).astype(target)
            if target == np.float16 and np.isinf(converted[np.isfinite(piece)]).any():
                raise UserError(
                    f"tensor {name} has values beyond float16's 65504: use --precision bf16"
                )
            out.write(converted.tobytes())
