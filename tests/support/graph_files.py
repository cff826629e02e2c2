"""What onnx itself says of a graph on disk, and how many nodes it has."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx


def check_strictly(model: Path, place: Path) -> None:
    """onnx.checker with strict shape inference; raises what onnx raises.

    On a copy: a checkpoint's shards are linked, and onnx reads no file with several links.
    """
    shutil.copytree(model.parent, place)
    onnx.checker.check_model(str(place / model.name), full_check=True)


def nodes(model: Path) -> int:
    """Nodes of the main graph that compute."""
    graph = onnx.load(model, load_external_data=False).graph
    return sum(node.op_type != "Constant" for node in graph.node)
