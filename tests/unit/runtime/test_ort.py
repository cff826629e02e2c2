"""The onnxruntime backend on a package written by hand. Oracle: float64 attention in numpy."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.runtime.cache_codec import CacheCodec
from ctx_export.runtime.contract import Contract
from ctx_export.runtime.opening import BackendOptions
from ctx_export.runtime.ort import OrtBackend
from ctx_export.runtime.ort_cache import CacheTensor
from ctx_export.runtime.session import open_session
from tests.unit.runtime import context_package, tiny_package

TOKENS = np.random.default_rng(3).integers(0, tiny_package.VOCAB, 19)


@pytest.mark.parametrize("sizes", [[19], [1] * 19, [8, 3, 1, 7]])
def test_logits_equal_numpy_for_any_split(tmp_path: Path, sizes: list[int]) -> None:
    tiny = tiny_package.write(tmp_path)
    parts = []
    with open_session(tmp_path, threads=1) as session:
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            parts.append(session.feed(TOKENS[None, end - size : end])[0])
    np.testing.assert_allclose(
        np.concatenate(parts), tiny.expected(TOKENS.tolist()), rtol=0, atol=2e-5
    )


def test_rows_of_a_batch_are_independent(tmp_path: Path) -> None:
    tiny = tiny_package.write(tmp_path)
    first, second = TOKENS[:12].tolist(), TOKENS[3:10].tolist()
    padded = np.array([first, second + [0] * 5, [0] * 12])
    with open_session(tmp_path, batch=3, threads=1) as session:
        logits = session.feed(padded, lengths=[12, 7, 0])
        np.testing.assert_allclose(logits[0], tiny.expected(first), rtol=0, atol=2e-5)
        np.testing.assert_allclose(logits[1, :7], tiny.expected(second), rtol=0, atol=2e-5)
        assert not logits[1, 7:].any() and not logits[2].any()
        session.fork(1, to=0)
        last = session.feed([[4], [4], [5]], logits="last")
        expected = tiny.expected([*second, 4])[-1]
        np.testing.assert_allclose(last[:2], [expected, expected], rtol=0, atol=2e-5)
        np.testing.assert_allclose(last[2], tiny.expected([5])[0], rtol=0, atol=2e-5)


def test_caches_grow_in_place_and_keep_their_contents(tmp_path: Path) -> None:
    tiny = tiny_package.write(tmp_path)
    long = np.random.default_rng(5).integers(0, tiny_package.VOCAB, 300)
    with open_session(tmp_path, threads=1) as session:
        session.feed(long[None, :250])
        before = session.cache_bytes
        logits = session.feed(long[None, 250:])
        assert session.capacity == 512 and session.cache_bytes == 2 * before
        key, value = session.read_cache(0)
    assert before == 2 * 256 * tiny_package.WIDTH * 4
    stored = tiny.embed[long].reshape(300, 2, 3).transpose(1, 0, 2)
    np.testing.assert_array_equal(key[0, :, :300], stored.astype(np.float32))
    np.testing.assert_array_equal(key, value)
    assert not key[0, :, 300:].any()
    np.testing.assert_allclose(logits[0], tiny.expected(long.tolist())[250:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("failing", range(4))
def test_a_growth_without_memory_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    context_package.write(tmp_path)
    tokens = np.random.default_rng(5).integers(0, context_package.VOCAB, (1, 300))
    resize, calls = CacheTensor.resize, []

    def fail_once(tensor: CacheTensor, slots: int) -> None:
        calls.append(slots)
        if len(calls) == failing + 1:
            raise MemoryError("no memory for an array")
        resize(tensor, slots)

    with open_session(tmp_path, threads=1) as session, open_session(tmp_path) as other:
        session.feed(tokens[:, :250])
        before, held = session.read_cache(1), session.cache_bytes
        monkeypatch.setattr(CacheTensor, "resize", fail_once)
        with pytest.raises(UserError, match="no memory for caches of 512 slots: no memory for an"):
            session.feed(tokens[:, 250:])
        assert calls == [512] * (failing + 1) + [256] * failing
        assert session.cache_bytes == held and session.seen.tolist() == [250]
        np.testing.assert_array_equal(session.read_cache(1), before)
        expected = other.feed(tokens)[:, 250:]
        np.testing.assert_allclose(session.feed(tokens[:, 250:]), expected, rtol=0, atol=1e-5)


def test_a_loaded_cache_equals_a_fed_one(tmp_path: Path) -> None:
    tiny = tiny_package.write(tmp_path)
    rows = tiny.embed[TOKENS].reshape(1, 19, 2, 3).transpose(0, 2, 1, 3)
    with open_session(tmp_path, threads=1) as session:
        session.load_cache([rows], [rows], 19)
        logits = session.feed([[7]], logits="last")
    expected = tiny.expected([*TOKENS.tolist(), 7])[-1]
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=2e-5)


def test_float16_runs_as_it_is(tmp_path: Path) -> None:
    tiny = tiny_package.write(tmp_path, "float16")
    with open_session(tmp_path, threads=1) as session:
        logits = session.feed(TOKENS[None])
        assert session.cache_bytes == 2 * 256 * tiny_package.WIDTH * 2
        assert session.read_cache(0)[0].dtype == np.float32
    # Logits of scale 5, rounded to float16 twice.
    np.testing.assert_allclose(logits[0], tiny.expected(TOKENS.tolist()), rtol=0, atol=2e-2)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_bfloat16_runs_as_a_float32_twin_that_says_so(tmp_path: Path) -> None:
    tiny = tiny_package.write(tmp_path, "bfloat16")
    told, logger = Lines(), logging.getLogger("ctx_export.runtime.ort")
    logger.addHandler(told)
    try:
        with open_session(tmp_path, threads=1) as session:
            logits = session.feed(TOKENS[None])
            assert session.cache_bytes == 2 * 256 * tiny_package.WIDTH * 4
    finally:
        logger.removeHandler(told)
    assert len(told.lines) == 1 and "float32 twin" in told.lines[0]
    # Widening is exact: the twin is as good as float32.
    np.testing.assert_allclose(logits[0], tiny.expected(TOKENS.tolist()), rtol=0, atol=2e-5)


def test_a_twin_computes_with_its_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in (1 + w) · x: nothing that depends on no input may be computed from the file."""
    doubled = "factor = Constant <value = T[1] {16384}> ()\n  head2 = Mul(head, factor)\n  head_t"
    graph = tiny_package._GRAPH.replace("(head)", "(head2)").replace("head_t", doubled, 1)
    monkeypatch.setattr(tiny_package, "_GRAPH", graph)
    tiny = tiny_package.write(tmp_path, "bfloat16")
    with open_session(tmp_path, threads=1) as session:
        logits = session.feed(TOKENS[None])
    expected = 2 * tiny.expected(TOKENS.tolist())
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=4e-5)


def test_chunks_keep_the_scores_within_their_budget(tmp_path: Path) -> None:
    tiny_package.write(tmp_path)
    contract = Contract.from_manifest(Manifest.load(tmp_path))
    backend = OrtBackend(tmp_path, contract, BackendOptions(batch=2))
    # 256 MiB / (2 sequences · 2 heads · 4 bytes · slots)
    assert backend.chunk_limit(1 << 20) == 16
    assert backend.chunk_limit(1 << 17) == 128
    assert backend.chunk_limit(1 << 30) == 16
    backend.close()


def test_layers_of_fixed_size_do_not_grow(tmp_path: Path) -> None:
    """A model may mix them with growing ones."""
    contract = Contract.from_manifest(context_package.write(tmp_path))
    fixed, growing = replace(contract.layers[0], slots=17), contract.layers[1]
    contract = replace(contract, layers=(fixed, growing))
    backend = OrtBackend(tmp_path, contract, BackendOptions(batch=2))
    for capacity in (256, 512):
        backend.grow(capacity)
        assert [backend.read(layer)[1].shape[2] for layer in (0, 1)] == [17, capacity]
    backend.close()


def test_memory_that_the_runtime_owns_is_changed_through_copies() -> None:
    """What a GPU's caches do, on the CPU."""
    half = np.array([0.5], np.float32)
    for dtype, size, scale in (
        ("float32", 4, None),
        ("float16", 2, None),
        ("bfloat16", 2, None),
        ("float8e4m3fn", 1, half),
        ("int8", 1, half),
    ):
        codec = CacheCodec(dtype=dtype, scale=scale)
        tensor = CacheTensor((2, 1, 3, 2), codec, "cpu", staged=True)
        rows = np.arange(4.0).reshape(2, 1, 1, 2)
        tensor.write(np.array([1]), rows)
        tensor.resize(5)
        tensor.copy_row(1, 0, 5)
        expected = np.zeros((2, 1, 5, 2))
        expected[:, 0, 1] = [2, 3]
        np.testing.assert_array_equal(tensor.read(), expected)
        tensor.zero(0, 5)
        assert not tensor.read()[0].any() and tensor.read()[1].any()
        assert (tensor.slots, tensor.nbytes) == (5, 20 * size)
        tensor.resize(2)
        np.testing.assert_array_equal(tensor.read()[1], expected[1, :, :2])


def test_a_provider_that_is_not_there_names_the_fix(tmp_path: Path) -> None:
    tiny_package.write(tmp_path)
    with pytest.raises(UserError, match="provider 'NpuProvider' is unknown"):
        open_session(tmp_path, providers=["NpuProvider"])
    with pytest.raises(
        UserError, match=r"no CUDAExecutionProvider: pip install 'ctx-export\[gpu\]"
    ):
        open_session(tmp_path, providers=["CUDAExecutionProvider"])


def test_a_broken_model_is_an_error_of_use(tmp_path: Path) -> None:
    tiny_package.write(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load"):
        open_session(tmp_path)
    tiny_package.write(tmp_path, "bfloat16")
    (tmp_path / "weights.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="weight embed cannot be read"):
        open_session(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model\.onnx cannot be read"):
        open_session(tmp_path)
