"""What a plan says, a session allocates: the demo exported and fed to its capacity."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import export_source, load_source
from ctx_export.planning import plan_report
from ctx_export.planning.methods import Question
from ctx_export.planning.report import Figures
from ctx_export.runtime import tensorrt
from ctx_export.runtime.session import Session, open_session
from ctx_export.targets import _cuda_device
from tests.unit.runtime import software_engine
from tests.unit.runtime.fake_gpu import FakeGpu

TARGET, BATCH = 700, 2
SHARED = {"target": TARGET, "max_batch": BATCH, "max_chunk": 70}
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"method": "yarn", "precision": "fp32"},
    "half": {"method": "yarn", "precision": "fp16"},
    "unrotated": {"method": "dynamic-ntk", "precision": "fp32"},
    "streaming": {"method": "streaming", "precision": "fp32", "sinks": 4, "window": 100},
    "memory": {"method": "memory", "precision": "fp32", "window": 60, "memory_tokens": 20},
    "landmark": {"method": "landmark", "precision": "fp32"},
    "landmark tokens": {"method": "landmark", "precision": "fp32", "landmark_token": 2047},
    "self-extend": {"method": "self-extend", "precision": "fp16"},
    "int8": {"method": "yarn", "precision": "fp32", "kv_cache_dtype": "int8"},
    "fp8": {"method": "yarn", "precision": "fp16", "kv_cache_dtype": "fp8"},
}


@cache
def source(precision: str) -> Source:
    return load_source(Recipe(precision=precision))


def package(options: dict[str, Any], output: Path) -> Path:
    recipe = Recipe(**SHARED, **options, engine="none", validate=False, output=output)
    return export_source(source(options["precision"]), recipe).output


def planned(options: dict[str, Any]) -> Figures:
    given = {key: value for key, value in options.items() if key != "method"}
    question = Question(given={**SHARED, **given}, methods=(options["method"],))
    (figures,) = plan_report("demo", question).figures
    return figures


def fill(session: Session) -> None:
    ids = np.random.default_rng(1).integers(3, 2000, (BATCH, TARGET))
    session.feed(ids, logits="last")
    if session.contract.max_context is None:  # a ring wraps and stays as it is
        session.feed(ids, logits="last")


@pytest.mark.parametrize("name", OPTIONS)
def test_a_session_at_capacity_holds_what_the_plan_says(name: str, tmp_path: Path) -> None:
    figures = planned(OPTIONS[name])
    with open_session(package(OPTIONS[name], tmp_path / "out"), batch=BATCH, threads=1) as session:
        fill(session)
        assert session.cache_bytes == figures.memory.caches == BATCH * figures.kv.sequence_bytes
        slots = [session.read_cache(layer)[0].shape for layer in range(5)]
        (kind,) = figures.kv.kinds
        assert slots == [(BATCH, kind.kv_heads, kind.cache.capacity, kind.head_dim)] * 5


@pytest.mark.parametrize("name", ["full", "landmark", "landmark tokens"])
def test_a_growing_cache_grows_by_the_bytes_per_token(name: str, tmp_path: Path) -> None:
    """Packages for one more block of tokens have caches that much larger."""
    rule = planned(OPTIONS[name]).kv.kinds[0].cache.parameters
    # As many tokens of text as are a whole number of blocks.
    block = 1 if rule is None else rule.block  # type: ignore[union-attr]
    tokens = block - 1 if name == "landmark tokens" else block
    first, second = (
        planned({**OPTIONS[name], "target": TARGET + more * tokens}) for more in (0, 3)
    )
    grown = second.kv.sequence_bytes - first.kv.sequence_bytes
    assert grown == 3 * tokens * first.kv.token_bytes


def test_an_engine_s_session_holds_the_same_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's API over a GPU of host memory: beside the caches it has what goes in and out of a
    call, and while a cache grows one more tensor."""
    gpu = FakeGpu()
    directory = package(OPTIONS["half"], tmp_path / "out")
    software_engine.add_engine(directory)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", software_engine.module(gpu))
    monkeypatch.setattr(_cuda_device, "missing_gpu", lambda: None)
    monkeypatch.setattr(tensorrt, "CudaDevice", lambda: gpu)
    figures = planned(OPTIONS["half"])
    with open_session(directory, "tensorrt-rtx", batch=BATCH) as session:
        before = gpu.used - session.cache_bytes
        fill(session)
        logits = BATCH * 2048 * 2  # one row of each sequence, in float16
        assert session.cache_bytes == figures.memory.caches
        assert gpu.used == before + figures.memory.caches + logits
        assert gpu.peak <= gpu.used + figures.memory.growing
    gpu.check_released()


def test_weights_are_the_bytes_of_the_package(tmp_path: Path) -> None:
    """In fp16 the demo's bfloat16 weights are written again, one by one."""
    import onnx

    directory = package(OPTIONS["half"], tmp_path / "out")
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    lengths = [
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    ]
    assert sum(lengths) == planned(OPTIONS["half"]).memory.weights
