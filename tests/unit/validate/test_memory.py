"""Oracles: sizes computed by hand, a meminfo file written by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from ctx_export.validate import memory

# 1000 numbers: 4000 bytes in float32.
CHECKPOINT = SimpleNamespace(
    tensors={"a": SimpleNamespace(shape=(20, 30)), "b": SimpleNamespace(shape=(400,))}
)


@pytest.mark.parametrize(
    ("free", "by_layer", "room"),
    [
        (100_000, False, 96_000),
        (8_000, False, 4_000),
        (7_999, True, 3_999.5),
        (100, True, 50),
        (None, False, math.inf),
    ],
)
def test_a_reference_takes_at_most_half_of_the_free_memory(monkeypatch, free, by_layer, room):
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    found = memory.reference_memory(CHECKPOINT)
    assert (found.by_layer, found.room) == (by_layer, room)


def test_free_memory_is_what_the_system_says(monkeypatch, tmp_path):
    free = memory.available_bytes()
    assert free is None or free > 1 << 20
    text = "MemTotal:  100 kB\nMemAvailable:      42 kB\nSwapFree: 7 kB\n"
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr("ctx_export.validate.memory.Path", lambda _: tmp_path / "meminfo")
    assert memory.available_bytes() == 42 * 1024
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\n")
    assert memory.available_bytes() is None
    (tmp_path / "meminfo").unlink()
    assert memory.available_bytes() is None
    assert memory.gibibytes(3 * 2**29) == "1.5 GiB"
