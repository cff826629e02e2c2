"""Where a checkpoint's tensors lie in its safetensors shards, read from the headers alone.

Format: 8 bytes little-endian header size, a JSON header, then the tensors' bytes; `data_offsets`
count from the end of the header (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_MAX_HEADER = 100 << 20  # the format's own limit, bytes
ELEMENT_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "U8": 1,
    "I8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLocation:
    """One tensor inside a shard. `offset` and `length` are bytes from the start of the file."""

    file: Path
    dtype: str  # safetensors' name: BF16, F16, F32 …
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedTensor:
    """One tensor that is kept as several, whose bytes follow one another in it."""

    pieces: tuple[TensorLocation, ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.pieces[0].dtype


Tensor = TensorLocation | JoinedTensor


def read_shards(directory: Path) -> dict[str, TensorLocation]:
    """All tensors of a checkpoint directory by name.

    Raises UserError for a missing index, a missing or truncated shard, or a broken header.
    """
    single, index = directory / SINGLE_NAME, directory / INDEX_NAME
    if index.is_file():
        return _read_indexed(directory, index)
    if single.is_file():
        return _read_header(single)
    raise UserError(
        f"{directory} has neither {SINGLE_NAME} nor {INDEX_NAME}: convert its weights to "
        "safetensors (model.save_pretrained writes them)"
    )


def _read_indexed(directory: Path, index: Path) -> dict[str, TensorLocation]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is not a valid shard index: {error}; download it again"
        ) from None
    headers: dict[str, dict[str, TensorLocation]] = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names shard {name!r}: shards must lie beside the index")
        headers[name] = _read_header(directory / name)
    tensors = {}
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise UserError(f"shard {name} lacks tensor {tensor} that {index.name} promises")
        tensors[tensor] = headers[name][tensor]
    return tensors


def _read_header(path: Path) -> dict[str, TensorLocation]:
    if not path.is_file():
        raise UserError(f"shard {path.name} is missing in {path.parent}: download it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        if length > min(_MAX_HEADER, size - 8):
            raise _truncated(path, size, 8 + length)
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
    except (ValueError, AttributeError):
        raise UserError(f"shard {path} has a broken header: download it again") from None
    data = 8 + length
    tensors = {name: _location(path, name, entry, data) for name, entry in entries.items()}
    end = max((t.offset + t.length for t in tensors.values()), default=data)
    if end > size:
        raise _truncated(path, size, end)
    return tensors


def _location(path: Path, name: str, entry: Any, data: int) -> TensorLocation:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        whole = all(isinstance(n, int) and n >= 0 for n in (begin, end, *shape))
        expected = math.prod(shape) * ELEMENT_BYTES.get(dtype, 0) if whole else -1
        if dtype in ELEMENT_BYTES and end - begin != expected:
            raise ValueError(f"{end - begin} bytes for {dtype}{list(shape)}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"shard {path}, tensor {name}: broken entry ({error})") from None
    return TensorLocation(
        file=path, dtype=dtype, shape=shape, offset=data + begin, length=end - begin
    )


def _truncated(path: Path, size: int, needed: int) -> UserError:
    return UserError(
        f"shard {path} is truncated: {size} bytes where its header needs {needed}; "
        "download it again"
    )
