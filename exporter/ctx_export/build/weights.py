"""Weights of a package: referenced where they lie, or written tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ctx_export.build.link import DATA_NAME, link_files
from ctx_export.core.errors import UserError
from ctx_export.core.progress import Progress
from ctx_export.frontends.shards import JoinedTensor, Tensor, TensorLocation

_ALIGNMENT = 4096  # bytes; lets a runtime map tensors
_LARGE = 1024  # bytes; smaller constants stay in the graph
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
    storage: str  # cloned, linked, copied, converted


@dataclass(frozen=True, slots=True, kw_only=True)
class Storing:
    """`move_constants`: those inside the graph of more than a kilobyte leave it. `hard_links`: the
    package's weight files may be the source's own under a second name."""

    move_constants: bool = False
    hard_links: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Bytes of an existing file that are a weight as it stands."""

    file: Path
    offset: int
    length: int


def store_weights(
    graph: ir.Graph,
    weights: Mapping[str, Tensor],
    directory: Path,
    progress: Progress,
    how: Storing = Storing(),
) -> StoredWeights:
    """Give every weight of `graph` its external data in `directory`.

    `weights` are a checkpoint's tensors by name; other weights have their data already: external
    ones lie in the files of the model they come from. Files are shared where no weight they hold
    changes type (copied across file systems); weights that change type, are kept in pieces or lie
    in the graph are written into one data file. Never holds more than one tensor.
    """
    _check_data(graph, weights)
    places = dict(_places(graph, weights))
    changed = {n: weights[n] for n in graph.initializers if n in weights and n not in places}
    inside = _constants(graph) if how.move_constants else {}
    own = {DATA_NAME} if changed or inside else set()
    files = {place.file for place in places.values()}
    linked = link_files(files, directory, own, hard_links=how.hard_links)
    for name, place in places.items():
        _refer(graph, name, linked[place.file].name, place.offset, place.length)
    names = {file.name for file in linked.values()} | own
    if own:
        with (directory / DATA_NAME).open("xb") as out:  # never into a file that is linked
            _convert(graph, changed, out, progress)
            _move(graph, inside, out, progress)
    ways = {file.how for file in linked.values()} | ({"copied"} if inside else set())
    ways |= {"converted"} if changed else set()
    storage = next((way for way in ("converted", "copied", "linked") if way in ways), "cloned")
    return StoredWeights(files=tuple(sorted(names)), storage=storage)


def _places(graph: ir.Graph, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, _Place]]:
    """The weights that are kept where they lie."""
    for name, value in graph.initializers.items():
        location, held = weights.get(name), value.const_value
        if isinstance(location, TensorLocation) and _STORED[_dtype(graph, name)] == location.dtype:
            yield (
                name,
                _Place(file=location.file, offset=location.offset, length=location.length),
            )
        elif location is None and isinstance(held, ir.ExternalTensor):
            yield (
                name,
                _Place(file=Path(held.path), offset=held.offset or 0, length=held.nbytes),
            )


def _constants(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Large tensors inside the graph."""
    held = {name: value.const_value for name, value in graph.initializers.items()}
    return {
        name: tensor
        for name, tensor in held.items()
        if tensor is not None
        and not isinstance(tensor, ir.ExternalTensor)
        and tensor.dtype is not ir.DataType.STRING
        and tensor.nbytes > _LARGE
    }


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


def _refer(graph: ir.Graph, name: str, file: str, offset: int, length: int) -> None:
    value = graph.initializers[name]
    assert value.dtype is not None and isinstance(value.shape, ir.Shape)
    value.const_value = ir.ExternalTensor(
        file, offset, length, value.dtype, shape=value.shape, name=name
    )


def _convert(
    graph: ir.Graph, weights: Mapping[str, Tensor], out: BinaryIO, progress: Progress
) -> None:
    for done, (name, location) in enumerate(weights.items(), 1):
        offset = _align(out)
        target = _NUMPY[_STORED[_dtype(graph, name)]]
        pieces = location.pieces if isinstance(location, JoinedTensor) else (location,)
        for piece in pieces:
            _convert_tensor(name, piece, target, out)
        _refer(graph, name, DATA_NAME, offset, out.tell() - offset)
        progress.update(done, len(weights))


def _move(
    graph: ir.Graph, tensors: Mapping[str, ir.TensorProtocol], out: BinaryIO, progress: Progress
) -> None:
    """Write tensors of any type as ONNX stores them, those of less than a byte packed."""
    for done, (name, tensor) in enumerate(tensors.items(), 1):
        offset = _align(out)
        out.write(tensor.tobytes())
        _refer(graph, name, DATA_NAME, offset, out.tell() - offset)
        progress.update(done, len(tensors))


def _align(out: BinaryIO) -> int:
    out.seek(-(-out.tell() // _ALIGNMENT) * _ALIGNMENT)
    return out.tell()


def _convert_tensor(
    name: str, location: TensorLocation, target: np.dtype[Any], out: BinaryIO
) -> None:
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
