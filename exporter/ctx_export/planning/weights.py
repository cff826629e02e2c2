"""Bytes of a decoder's weights: from the checkpoint's headers, from its index, or counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ctx_export.core.cache_type import ELEMENT_BYTES
from ctx_export.core.errors import UserError
from ctx_export.core.plan import DTYPE_OF
from ctx_export.planning.parameters import Parameters

PRECISION_BYTES = {name: ELEMENT_BYTES[dtype] for name, dtype in DTYPE_OF.items()}
_STORED = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


class Origin(Enum):
    """How the bytes are known."""

    HEADERS = "the headers of the safetensors shards"
    INDEX = "total_size of model.safetensors.index.json"
    COUNTED = "counted from config.json"
    ESTIMATED = "estimated from config.json: the family's tensors are not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Weights as they are stored. `elements` by precision, where the headers were read; bytes of
    tensors that are no floats come on top."""

    origin: Origin
    bytes: int
    elements: Mapping[str, int]
    others: int = 0

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(self.elements)

    @property
    def precision(self) -> str | None:
        """That of most bytes."""
        return max(
            self.elements,
            key=lambda name: self.elements[name] * PRECISION_BYTES[name],
            default=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A package's weights. `read` are the bytes of those that one call of the model reads: all
    but the embeddings of other tokens."""

    origin: Origin
    numbers: int  # as the headers have them, else as counted
    bytes: int
    read: int
    read_active: int  # with the chosen experts only, which is not what a package does

    @property
    def exact(self) -> bool:
        return self.origin is not Origin.ESTIMATED


def of_headers(directory: Path) -> Stored:
    """The weights of a checkpoint directory; raises UserError for bad shards."""
    from ctx_export.frontends.shards import read_shards

    elements: Counter[str] = Counter()
    total = others = 0
    for tensor in read_shards(directory).values():
        total += tensor.length
        precision = _STORED.get(tensor.dtype)
        if precision is None:
            others += tensor.length
        else:
            elements[precision] += tensor.length // PRECISION_BYTES[precision]
    return Stored(origin=Origin.HEADERS, bytes=total, elements=elements, others=others)


def of_index(index: Mapping[str, Any], path: Path) -> Stored | None:
    """The weights of an index without its shards; None where it does not state their size."""
    metadata = index.get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int | float) or size < 1:
        raise UserError(f"{path} has total_size = {size!r}: download it again")
    return Stored(origin=Origin.INDEX, bytes=int(size), elements={})


def package_weights(
    parameters: Parameters, stored: Stored | None, own: str, precision: str
) -> Weights:
    """The weights of a package in `precision` of a checkpoint that is in `own`."""
    size = PRECISION_BYTES[precision]
    numbers = parameters.total
    if stored is None:
        origin = Origin.COUNTED if parameters.exact else Origin.ESTIMATED
        total = numbers * size
    else:
        origin = stored.origin
        total = stored.bytes // PRECISION_BYTES[own] * size
        if stored.elements:
            numbers = sum(stored.elements.values())
            total = stored.others + size * numbers
    unread = 0 if parameters.tied else parameters.embedding * size
    spared = (parameters.matrices - parameters.active_matrices) * size
    read = max(0, total - unread)
    return Weights(
        origin=origin,
        numbers=numbers,
        bytes=total,
        read=read,
        read_active=max(0, read - spared),
    )
