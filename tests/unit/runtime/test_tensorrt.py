"""Sessions over an engine. Oracle: the same session over onnxruntime, of which every result is
compared to 1e-6; float64 numpy where it says so.

The engine is `software_engine`, TensorRT's API and rules over a fake GPU that finds every address
out of place and every byte that leaks.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.runtime import tensorrt
from ctx_export.runtime.backend import Step
from ctx_export.runtime.contract import Contract
from ctx_export.runtime.engine_file import load_engine
from ctx_export.runtime.errors import ContextLimitError, SessionStateError
from ctx_export.runtime.session import Session, open_session
from ctx_export.runtime.tensorrt import EngineBackend
from ctx_export.targets import _cuda_device
from tests.unit.runtime import context_package, software_engine, tiny_package
from tests.unit.runtime.context_package import FULL, MAX_BATCH, MAX_CHUNK, RING, VOCAB
from tests.unit.runtime.fake_gpu import FakeGpu
from tests.unit.runtime.software_engine import SoftwareEngine

Open = Callable[..., Session]
KINDS: dict[str, dict[str, Any]] = {
    "full": {"cache": FULL},
    "ring": {"cache": RING},
    "rope": {"cache": FULL, "rope_length": True},
}


def tokens(count: int, batch: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, count))


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def engine_session(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens a package with its engine on `gpu`; what it holds is released in the end."""

    def opened(directory: Path, batch: int = 1, **changes: Any) -> Session:
        software_engine.add_engine(directory)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", software_engine.module(gpu, **changes))
        return stack.enter_context(open_session(directory, "tensorrt-rtx", batch=batch))

    monkeypatch.setattr(_cuda_device, "missing_gpu", lambda: None)
    monkeypatch.setattr(tensorrt, "CudaDevice", lambda: gpu)
    with ExitStack() as stack:
        yield opened
    gpu.check_released()


class Pair:
    """Two sessions that are told the same and have to answer the same."""

    def __init__(self, engine: Session, ort: Session) -> None:
        self.engine, self.ort = engine, ort

    def feed(self, *args: Any, **kwargs: Any) -> Any:
        found, expected = (s.feed(*args, **kwargs) for s in (self.engine, self.ort))
        assert found.dtype == np.float32 and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        self.check()
        return found

    def tell(self, what: Callable[[Session], Any]) -> Any:
        found, expected = what(self.engine), what(self.ort)
        assert found == expected
        self.check()
        return found

    def check(self) -> None:
        assert self.engine.seen.tolist() == self.ort.seen.tolist()
        assert self.engine.capacity == self.ort.capacity
        assert self.engine.cache_bytes == self.ort.cache_bytes

    def check_caches(self) -> None:
        for layer in range(context_package.LAYERS):
            pairs = zip(self.engine.read_cache(layer), self.ort.read_cache(layer), strict=True)
            for found, expected in pairs:
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


OpenPair = Callable[..., Pair]


@pytest.fixture
def pair(tmp_path: Path, engine_session: Open) -> Iterator[OpenPair]:
    def opened(kind: str = "full", batch: int = 1) -> Pair:
        context_package.write(tmp_path, **KINDS[kind])
        engine = engine_session(tmp_path, batch)
        return Pair(engine, stack.enter_context(open_session(tmp_path, batch=batch, threads=1)))

    with ExitStack() as stack:
        yield opened


def engine_of(session: Session) -> SoftwareEngine:
    engine: SoftwareEngine = session._backend._loaded.engine  # type: ignore[union-attr]
    return engine


@pytest.mark.parametrize("sizes", [[61], [1] * 61, [7, 1, 8, 13, 3, 29]])
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_agrees(pair: OpenPair, kind: str, sizes: list[int]) -> None:
    both, given = pair(kind), tokens(61)
    parts = [
        both.feed(given[:, end - size : end], 90 if kind == "rope" else None)
        for end, size in zip(np.cumsum(sizes), sizes, strict=True)
    ]
    both.check_caches()
    both.tell(lambda session: session.reset())
    whole = both.feed(given, 90 if kind == "rope" else None)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_batches_agree(pair: OpenPair, kind: str) -> None:
    both = pair(kind, batch=3)
    both.feed(tokens(19, 3), lengths=[19, 4, 0])
    both.feed(tokens(11, 3, seed=1), lengths=[0, 11, 1], logits="last")
    both.feed(tokens(1, 3, seed=2), lengths=[1, 0, 1])
    both.feed(tokens(0, 3))
    both.feed(tokens(23, 3, seed=3))
    both.check_caches()


def test_the_planned_length_reaches_the_engine(pair: OpenPair) -> None:
    both = pair("rope", batch=2)
    near = both.feed(tokens(5, 2), [20, 30])
    both.tell(lambda session: session.reset())
    far = both.feed(tokens(5, 2), [120, 530])
    difference = np.broadcast_to(np.array([1.0, 5.0])[:, None, None], far.shape)
    np.testing.assert_allclose(far - near, difference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_caches_grow_to_the_maximum_and_no_farther(pair: OpenPair, batch: int) -> None:
    both, given = pair(batch=batch), tokens(600, batch)
    for start, end, slots in ((0, 256, 256), (256, 257, 512), (257, 599, 600), (599, 600, 600)):
        both.feed(given[:, start:end], logits="last")
        assert both.engine.capacity == slots
    both.check_caches()
    for session in (both.engine, both.ort):
        with pytest.raises(ContextLimitError, match="maximum context of 600"):
            session.feed(given[:, :1])
    both.check()


def test_growing_takes_one_more_tensor_than_it_keeps(pair: OpenPair, gpu: FakeGpu) -> None:
    both = pair()
    both.feed(tokens(256))
    tensor = context_package.KV_WIDTH * 4
    rest = gpu.used - 4 * 256 * tensor
    both.feed(tokens(1))
    assert gpu.peak == 4 * 512 * tensor + 256 * tensor + rest
    assert gpu.used == 4 * 512 * tensor + rest


def test_a_growth_without_memory_changes_nothing(pair: OpenPair, gpu: FakeGpu) -> None:
    both = pair(batch=2)
    both.feed(tokens(200, 2))
    # Enough for two of the four tensors to double.
    gpu.total = gpu.used + 7 * (256 * 2 * context_package.KV_WIDTH * 4) // 2
    allocations = gpu.allocations
    with pytest.raises(UserError, match="the GPU has no"):
        both.engine.feed(tokens(100, 2))
    # Two grown, one refused, two taken back.
    assert gpu.allocations - allocations == 5
    both.check()
    both.feed(tokens(56, 2, seed=1))
    both.check_caches()
    gpu.total *= 2
    both.feed(tokens(100, 2))


@pytest.mark.parametrize("kind", ["full", "ring"])
def test_sequences_are_managed_alike(pair: OpenPair, kind: str) -> None:
    both = pair(kind, batch=3)
    both.feed(tokens(40, 3), lengths=[40, 9, 0])
    assert both.tell(lambda session: session.fork(0)) == 2
    both.feed(tokens(3, 3, seed=1))
    both.tell(lambda session: session.truncate(0, 38))
    both.tell(lambda session: session.reset([1]))
    both.feed(tokens(12, 3, seed=2), lengths=[3, 12, 1])
    assert both.tell(lambda session: session.fork(1, to=0)) == 0
    both.tell(lambda session: session.truncate(2, 0))
    both.feed(tokens(21, 3, seed=3))
    both.check_caches()
    if kind == "ring":
        for session in (both.engine, both.ort):
            with pytest.raises(SessionStateError, match="bounded cache"):
                session.truncate(0, 1)


@pytest.mark.parametrize(
    ("kind", "length", "given"), [("full", 300, 300), ("ring", 13, 13), ("ring", 100, 13)]
)
def test_a_loaded_cache_agrees(pair: OpenPair, kind: str, length: int, given: int) -> None:
    both, random = pair(kind, batch=2), np.random.default_rng(4)
    shape = (2, context_package.KV_HEADS, given, context_package.HEAD_DIM)
    keys, values = (
        [random.standard_normal(shape) for _ in range(context_package.LAYERS)] for _ in range(2)
    )
    both.feed(tokens(30, 2))
    both.tell(lambda session: session.load_cache(keys, values, length))
    both.check_caches()
    both.feed(tokens(1, 2))
    both.feed(tokens(9, 2, seed=1))


@pytest.mark.parametrize("kind", ["full", "ring"])
def test_reset_forgets_what_is_no_number(pair: OpenPair, kind: str) -> None:
    """Slots that nobody sees take part with weight 0, and 0 · NaN is NaN."""
    both = pair(kind, batch=2)
    shape = (2, context_package.KV_HEADS, 11, context_package.HEAD_DIM)
    poison = [np.full(shape, np.nan)] * context_package.LAYERS
    both.tell(lambda session: session.load_cache(poison, poison, 11))
    both.tell(lambda session: session.truncate(1, 0))
    both.tell(lambda session: session.reset())
    assert np.isfinite(both.feed(tokens(3, 2), lengths=[3, 1])).all()
    for session in (both.engine, both.ort):
        assert all(np.isfinite(part).all() for part in session.read_cache(0))


def test_the_profile_is_the_one_of_the_call(pair: OpenPair) -> None:
    both = pair(batch=2)
    engine = engine_of(both.engine)
    both.feed(tokens(16, 2), logits="last")
    both.feed(tokens(1, 2))
    runs = [
        (profile, shapes["input_ids"], shapes["logit_rows"]) for profile, shapes in engine.runs
    ]
    assert runs == [
        ("prefill", (2, 7), (2, 1)),
        ("prefill", (2, 7), (2, 1)),
        ("prefill", (2, 2), (2, 1)),
        ("decode", (2, 1), (2, 1)),
    ]
    both.feed(tokens(8, 2))
    assert [(p, s["logit_rows"]) for p, s in engine.runs[4:]] == [
        ("prefill", (2, 7)),
        ("decode", (2, 1)),
    ]


def test_the_largest_shapes_of_the_profiles_are_reached(pair: OpenPair) -> None:
    both = pair(batch=MAX_BATCH)
    both.feed(tokens(600, MAX_BATCH))
    engine = engine_of(both.engine)
    assert engine.manifest.engine is not None
    stated = engine.manifest.engine["profiles"]["prefill"]
    largest: dict[str, tuple[int, ...]] = {}
    for _, shapes in engine.runs:
        for name, shape in shapes.items():
            largest[name] = tuple(map(max, shape, largest.get(name, shape)))
    assert {name: list(shape) for name, shape in largest.items()} == {
        name: maximum for name, (_, _, maximum) in stated.items()
    }


def test_larger_shapes_are_refused(tmp_path: Path, engine_session: Open, gpu: FakeGpu) -> None:
    context_package.write(tmp_path)
    with pytest.raises(UserError, match=r"batch is 4, the engine takes at most 3.*--max-batch"):
        engine_session(tmp_path, batch=4)
    with pytest.raises(UserError, match="chunk is 8: the package takes 1 to 7"):
        open_session(tmp_path, "tensorrt-rtx", chunk=8)
    with pytest.raises(UserError, match="backend tensorrt-rtx takes neither"):
        open_session(tmp_path, "tensorrt-rtx", threads=2)
    gpu.check_released()


def test_what_the_engine_refuses_names_the_tensor(
    tmp_path: Path, engine_session: Open, gpu: FakeGpu
) -> None:
    context_package.write(tmp_path)
    session = engine_session(tmp_path)
    assert session._backend is not None
    assert session._backend.chunk_limit(600) == MAX_CHUNK
    rows = np.zeros((1, 1), np.int64)
    step = Step(input_ids=tokens(8), seen=rows[0], new=rows[0], logit_rows=rows)
    with pytest.raises(RuntimeError, match=r"refuses input_ids of shape \[1, 8\]: .* outside of"):
        session._backend.step(step)
    session.feed(tokens(8))


def test_a_call_that_fails_leaves_a_usable_session(pair: OpenPair) -> None:
    both = pair()
    both.feed(tokens(9))
    engine_of(both.engine).runtime.error("something before")
    engine_of(both.engine).refuses = True
    with pytest.raises(RuntimeError, match="the engine did not run: enqueue failed"):
        both.engine.feed(tokens(3))
    engine_of(both.engine).refuses = False
    both.feed(tokens(3, seed=1))


def test_logits_without_memory_leave_a_usable_session(pair: OpenPair, gpu: FakeGpu) -> None:
    both = pair()
    both.feed(tokens(9), logits="last")
    gpu.fail_at = {gpu.allocations, gpu.allocations + 1}
    for _ in range(2):
        with pytest.raises(UserError, match="the GPU has no"):
            both.engine.feed(tokens(7, seed=1))
    both.feed(tokens(7, seed=1))


def test_a_step_copies_once_and_allocates_nothing(pair: OpenPair, gpu: FakeGpu) -> None:
    both = pair(batch=2)
    both.feed(tokens(7, 2))
    uploads, allocations = gpu.uploads, gpu.allocations
    for seed in range(5):
        both.feed(tokens(1, 2, seed))
        both.feed(tokens(7, 2, seed), logits="last")
    assert gpu.uploads - uploads == 10 and gpu.allocations == allocations


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_logits_of_every_precision(tmp_path: Path, engine_session: Open, dtype: str) -> None:
    """Oracle: float64 attention in numpy; logits of scale 10 are rounded once."""
    tiny = tiny_package.write(tmp_path, dtype, max_chunk=250)
    given = np.random.default_rng(3).integers(0, tiny_package.VOCAB, 19)
    session = engine_session(tmp_path)
    parts = [session.feed(given[None, at : at + 5])[0] for at in range(0, 19, 5)]
    session.feed(np.ones((1, 300), np.int64))
    error = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1}[dtype]
    expected = tiny.expected(given.tolist())
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=0, atol=error)
    rows = tiny.embed[given].reshape(19, 2, 3).transpose(1, 0, 2)
    for part in session.read_cache(0):
        np.testing.assert_array_equal(part[0, :, :19], rows)


def test_close_releases_contexts_engine_and_memory(
    tmp_path: Path, engine_session: Open, gpu: FakeGpu
) -> None:
    context_package.write(tmp_path)
    session = engine_session(tmp_path)
    session.feed(tokens(8))
    engine, backend = engine_of(session), session._backend
    contexts, alive = engine.contexts, weakref.ref(engine)
    assert [context() is None for context in contexts] == [False, False]
    del engine
    session.close()
    session.close()
    gpu.check_released()
    gc.collect()
    assert alive() is None and all(context() is None for context in contexts)
    assert backend is not None and backend.cache_bytes == 0
    with pytest.raises(SessionStateError, match="closed"):
        session.feed(tokens(1))


def test_layers_of_fixed_size_do_not_grow(tmp_path: Path, gpu: FakeGpu) -> None:
    """A model may mix them with growing ones."""
    context_package.write(tmp_path)
    manifest = software_engine.add_engine(tmp_path)
    contract = Contract.from_manifest(manifest)
    fixed, growing = replace(contract.layers[0], slots=17), contract.layers[1]
    contract = replace(contract, layers=(fixed, growing))
    loaded = load_engine(software_engine.module(gpu), tmp_path, manifest)
    backend = EngineBackend(loaded, gpu, contract, 2)
    for capacity in (256, 512):
        backend.grow(capacity)
        assert [backend.read(layer)[1].shape[2] for layer in (0, 1)] == [17, capacity]
    backend.close()
    gpu.check_released()


@pytest.mark.parametrize("failing", range(5))
def test_an_opening_without_memory_leaks_nothing(
    tmp_path: Path, engine_session: Open, gpu: FakeGpu, failing: int
) -> None:
    """Inputs, then keys and values of two layers."""
    context_package.write(tmp_path)
    gpu.fail_at = {failing}
    with pytest.raises(UserError, match="the GPU has no"):
        engine_session(tmp_path)
    gpu.check_released()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["input_ids", "seen", "extra"]}, r"not the manifest's \(extra, logit_rows, "),
        ({"most_contexts": 0}, "cannot be set up: no memory for activations; use a GPU"),
        ({"most_contexts": 1}, "cannot be set up: no memory for activations; use a GPU"),
    ],
)
def test_an_engine_that_does_not_fit_leaks_nothing(
    tmp_path: Path, engine_session: Open, gpu: FakeGpu, changes: dict[str, Any], message: str
) -> None:
    context_package.write(tmp_path)
    with pytest.raises(UserError, match=message):
        engine_session(tmp_path, **changes)
    gpu.check_released()


def test_a_profile_that_cannot_be_chosen_leaks_nothing(
    tmp_path: Path, engine_session: Open, gpu: FakeGpu
) -> None:
    context_package.write(tmp_path)
    with pytest.raises(RuntimeError, match="profile 0 cannot be chosen: profile 0 is taken"):
        engine_session(tmp_path, taken_profiles=lambda: {0, 1})
    gpu.check_released()
