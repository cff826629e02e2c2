"""Protobuf's text format; the oracle is protobuf's own parser, on its struct message."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, text_format

from ctx_export.serving.pbtxt import Word
from ctx_export.serving.pbtxt import text_format as written


@pytest.mark.parametrize("name", ["plain", 'with "quotes"', "back\\slash", "línea\nzwei", ""])
def test_what_is_written_is_read_as_it_was(name):
    message = {
        "name": name,
        "public_dependency": [1, 2],
        "weak_dependency": [],
        "message_type": [{"name": "a", "field": [{"number": -3, "type": Word("TYPE_BOOL")}]}, {}],
        "options": {"deprecated": True, "cc_enable_arenas": False},
    }
    read = text_format.Parse(written(message), descriptor_pb2.FileDescriptorProto())
    expected = descriptor_pb2.FileDescriptorProto(name=name, public_dependency=[1, 2])
    first = expected.message_type.add(name="a")
    first.field.add(number=-3, type="TYPE_BOOL")
    expected.message_type.add()
    expected.options.deprecated, expected.options.cc_enable_arenas = True, False
    assert read == expected
