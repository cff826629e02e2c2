"""Whether an ONNX tensor's bytes are there: inline ones by count, external ones by path and size.

Format: https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from ctx_export.core.errors import UserError

_MOST_ELEMENTS = 1 << 48  # beyond any file; keeps sizes in bytes far from 64 bits' end
_AGAIN = "export or download the model again"
_Proto = onnx.TensorProto
# Of the lists that hold numbers inline, the elements' types and how many entries an element takes.
_FIELD_OF: dict[int, str] = {
    _Proto.FLOAT: "float_data",
    _Proto.COMPLEX64: "float_data",
    _Proto.DOUBLE: "double_data",
    _Proto.COMPLEX128: "double_data",
    _Proto.INT64: "int64_data",
    _Proto.UINT32: "uint64_data",
    _Proto.UINT64: "uint64_data",
    _Proto.STRING: "string_data",
}
_COMPLEX = (_Proto.COMPLEX64, _Proto.COMPLEX128)


def check_tensor(path: Path, tensor: onnx.TensorProto) -> None:
    """Raise UserError where the type, the shape or the inline bytes of a tensor make no sense."""
    name, shape = _name(tensor), list(tensor.dims)
    if any(size < 0 for size in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise UserError(f"{path}: tensor {name} has shape {shape}, which none can have: {_AGAIN}")
    if tensor.data_type not in _Proto.DataType.values() or tensor.data_type == _Proto.UNDEFINED:
        raise UserError(
            f"{path}: tensor {name} is of the unknown type {tensor.data_type}: {_AGAIN}"
        )
    if tensor.HasField("segment"):
        raise UserError(f"{path}: tensor {name} is stored in segments, which nothing reads")
    if tensor.data_location == _Proto.EXTERNAL:
        if tensor.data_type == _Proto.STRING:
            raise UserError(f"{path}: tensor {name} has texts as external data: {_AGAIN}")
        return
    got, needed = _inline(tensor)
    if got != needed:
        raise UserError(
            f"{path}: tensor {name} of type {_type_name(tensor)} and shape {shape} needs {needed} "
            f"and has {got}: {_AGAIN}"
        )


def _inline(tensor: onnx.TensorProto) -> tuple[str, str]:
    """What an inline tensor has and what its shape needs, in words."""
    elements = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        return f"{len(tensor.raw_data)} bytes", f"{byte_count(tensor)} bytes"
    entries = elements * (2 if tensor.data_type in _COMPLEX else 1)
    if tensor.data_type != _Proto.STRING and ir.DataType(tensor.data_type).bitwidth < 8:
        entries = byte_count(tensor)
    field = _FIELD_OF.get(tensor.data_type, "int32_data")
    return f"{len(getattr(tensor, field))} numbers", f"{entries} numbers"


def byte_count(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's elements, those of less than a byte packed."""
    if tensor.data_type == _Proto.STRING:
        return 0
    bits: int = math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth
    return (bits + 7) // 8


def fill_external(path: Path, tensor: onnx.TensorProto) -> None:
    """State the full path, offset and length of external data, after checking that a file beside
    `path` has them.

    Raises UserError for a location outside the model's directory, a missing file, or a range that
    is not in it or not the tensor's.
    """
    if tensor.data_location != _Proto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = _name(tensor)
    if not all(isinstance(text, str) for entry in entries.items() for text in entry):
        raise UserError(f"{path}: where tensor {name} has its data is no text: {_AGAIN}")
    data = _data_file(path, name, entries.get("location", ""))
    needed = byte_count(tensor)
    offset = _whole(path, name, "offset", entries.get("offset", "0"))
    length = _whole(path, name, "length", entries.get("length", str(needed)))
    if length != needed:
        raise UserError(
            f"{path}: tensor {name} of type {_type_name(tensor)} and shape {list(tensor.dims)} "
            f"needs {needed} bytes and refers to {length}: {_AGAIN}"
        )
    size = data.stat().st_size
    if offset + length > size:
        raise UserError(
            f"{path}: tensor {name} lies at bytes {offset} to {offset + length} of {data.name}, "
            f"which has {size}: the data file is truncated or another model's; {_AGAIN}"
        )
    del tensor.external_data[:]
    for key, value in (("location", data.resolve()), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _data_file(path: Path, name: str, location: str) -> Path:
    """The file that `location` names, which must lie in the directory of the model."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    escapes = (
        not location
        or "\0" in location
        or posix.is_absolute()
        or bool(windows.drive or windows.root)
        or ".." in (*posix.parts, *windows.parts)
    )
    if escapes:
        raise UserError(
            f"{path}: tensor {name} has its data at {location!r}: external data must lie in the "
            "model's own directory, by a relative path without '..'"
        )
    data, directory = path.parent / location, path.parent.resolve()
    try:
        resolved = data.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise UserError(
            f"{path}: the data file {location} of tensor {name} is missing: put it beside the "
            "model, under the name that it was written with"
        ) from None
    if not resolved.is_relative_to(directory):
        raise UserError(
            f"{path}: the data file {location} of tensor {name} is a link out of the model's "
            "directory: put a copy of the file there"
        )
    if not resolved.is_file():
        raise UserError(f"{path}: the data of tensor {name}, {location}, is not a file")
    return data


def _whole(path: Path, name: str, key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise UserError(
            f"{path}: the external data of tensor {name} has {key} {value!r}: it must be a number "
            f"of bytes; {_AGAIN}"
        )
    return int(value)


def _name(tensor: onnx.TensorProto) -> str:
    return tensor.name or "without a name"


def _type_name(tensor: onnx.TensorProto) -> str:
    return str(_Proto.DataType.Name(tensor.data_type)).lower()
