"""Attentions that read projections as they are written. Oracle: the same package with a swap of
heads and tokens around every attention, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ctx_export.ops.spec import Layout
from ctx_export.passes import rewrite
from tests.support import tiny
from tests.support.feeding import decode_pieces, fed, opened

IDS = np.random.default_rng(5).integers(0, tiny.VOCAB, 150)
# qwen3 norms the heads of q and k, phi3 has q, k and v in one projection.
LAYOUTS = {
    "llama": Layout.TOKEN_MAJOR,
    "qwen3": Layout.TOKEN_MAJOR,
    "phi3": Layout.PACKED,
}
METHODS: dict[str, dict[str, Any]] = {
    "streaming": {"sinks": 3, "window": 40},
    "dynamic-ntk": {"target": 256},
}
CONFIG = {"phi3": {"hidden_size": 64}}


def graph_of(package: Path) -> onnx.GraphProto:
    return onnx.load(package / "model.onnx", load_external_data=False).graph


def layouts(package: Path) -> set[int]:
    nodes = [node for node in graph_of(package).node if node.op_type == "SinkWindowAttention"]
    return {entry.i for node in nodes for entry in node.attribute if entry.name == "layout"}


@pytest.mark.parametrize("family", LAYOUTS)
def test_packages_compute_what_they_did_with_fewer_nodes(family, tmp_path, monkeypatch):
    checkpoint = tiny.save(tmp_path / "checkpoint", family=family, **CONFIG.get(family, {}))
    source = tiny.source(checkpoint)
    for method, options in METHODS.items():
        made = tiny.export(source, tmp_path / method, method=method, **options)
        with monkeypatch.context() as patch:
            patch.setattr(rewrite, "keep_tokens_first", lambda graph: Layout.HEAD_MAJOR)
            by_head = tiny.export(source, tmp_path / f"{method}-by-head", method=method, **options)
        assert (layouts(made), layouts(by_head)) == ({LAYOUTS[family]}, {Layout.HEAD_MAJOR})
        assert len(graph_of(made).node) < len(graph_of(by_head).node)
        pieces = decode_pieces(len(IDS), tiny.ORIGINAL_CONTEXT)
        logits = []
        for package in (made, by_head):
            with opened(package) as session:
                logits.append(fed(session, IDS, pieces))
        np.testing.assert_array_equal(*logits)
