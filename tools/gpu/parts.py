"""All measurements, the ones that matter most first."""

from __future__ import annotations

from tools.gpu import decode, graph, prefill, rotation, streaming
from tools.gpu.part import Part

PARTS: tuple[Part, ...] = (
    prefill.FULL,
    prefill.WINDOWED,
    decode.PART,
    streaming.PART,
    rotation.PART,
    graph.PART,
)


def part_named(name: str) -> Part:
    return next(part for part in PARTS if part.name == name)
