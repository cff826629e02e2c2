"""Protobuf's text format, of mappings, sequences and plain values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


class Word(str):
    """A name of an enumeration, written without quotes."""

    __slots__ = ()


def text_format(message: Mapping[str, Any]) -> str:
    """`message` as text: a mapping is a message, a list a repeated field."""
    return "\n".join(_fields(message, "")) + "\n"


def _fields(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield from _message(name, value, indent)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for entry in value:
                yield from _message(name, entry, indent)
        elif isinstance(value, list):
            yield f"{indent}{name}: [{', '.join(map(_scalar, value))}]"
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _message(name: str, message: Mapping[str, Any], indent: str) -> Iterator[str]:
    yield f"{indent}{name} {{"
    yield from _fields(message, indent + "  ")
    yield f"{indent}}}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)  # its escapes are C's
    return str(value)
