"""Sessions over a backend of plain numpy. Oracle: running sums and call lists written by hand."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo
from ctx_export.runtime.contract import Contract
from ctx_export.runtime.errors import ContextLimitError, SessionStateError
from ctx_export.runtime.session import Session, open_session
from tests.unit.runtime.fakes import VOCAB, FakeBackend, manifest

BOUNDED = CacheInfo(policy="bounded", sinks=2, window=5, capacity=10, keys="rotated")


def make(
    batch: int = 1, chunk: int | None = None, backend: dict[str, Any] | None = None, **changes: Any
) -> tuple[Session, FakeBackend]:
    stated = manifest(**changes)
    fake = FakeBackend(batch=batch, cache=stated.cache, **(backend or {}))
    return Session(stated, Contract.from_manifest(stated), fake, batch=batch, chunk=chunk), fake


def calls(fake: FakeBackend) -> list[tuple[list[list[int]], list[int], list[int]]]:
    return [(s.input_ids.tolist(), s.seen.tolist(), s.new.tolist()) for s in fake.steps]


def test_a_feed_is_cut_into_chunks_of_max_chunk() -> None:
    session, fake = make(max_chunk=4)
    logits = session.feed([[1, 2, 3, 4, 5, 6]])
    assert calls(fake) == [([[1, 2, 3, 4]], [0], [4]), ([[5, 6]], [4], [2])]
    assert logits.shape == (1, 6, VOCAB) and logits.dtype == np.float32
    assert logits[0, :, 0].tolist() == [1, 3, 6, 10, 15, 21]
    assert logits[0, :, 1].tolist() == [0, 1, 2, 3, 4, 5]
    assert session.seen.tolist() == [6]


@pytest.mark.parametrize("sizes", [[11], [1] * 11, [4, 7], [3, 1, 5, 2]])
def test_any_split_gives_the_same_logits(sizes: list[int]) -> None:
    tokens = np.arange(3, 14)[None]
    session, _ = make(chunk=3)
    ends = np.cumsum(sizes)
    parts = [session.feed(tokens[:, e - s : e]) for s, e in zip(sizes, ends, strict=True)]
    assert np.concatenate(parts, 1)[0, :, 0].tolist() == np.cumsum(tokens).tolist()


def test_ragged_rows_are_padded_and_counted_apart() -> None:
    session, fake = make(batch=3, max_chunk=2)
    logits = session.feed([[1, 2, 3], [4, 9, 9], [9, 9, 9]], lengths=[3, 1, 0])
    assert calls(fake) == [
        ([[1, 2], [4, 0], [0, 0]], [0, 0, 0], [2, 1, 0]),
        ([[3], [0], [0]], [2, 1, 0], [1, 0, 0]),
    ]
    assert logits[:, :, 0].tolist() == [[1, 3, 6], [4, 0, 0], [0, 0, 0]]
    session.feed([[5], [6], [7]])
    assert session.seen.tolist() == [4, 2, 1]


def test_last_logits_ask_for_one_row_of_each_call() -> None:
    session, fake = make(batch=3, max_chunk=2)
    last = session.feed([[1, 2, 3], [4, 5, 9], [9, 9, 9]], lengths=[3, 2, 0], logits="last")
    assert [s.logit_rows.tolist() for s in fake.steps] == [[[1], [1], [0]], [[0], [0], [0]]]
    assert last.shape == (3, VOCAB)
    assert last[:, 0].tolist() == [6, 9, 0]


def test_one_dimensional_tokens_are_one_sequence() -> None:
    session, _ = make()
    assert session.feed([5, 6])[0, :, 0].tolist() == [5, 11]


def test_an_empty_feed_calls_nothing() -> None:
    session, fake = make()
    assert session.feed(np.zeros((1, 0), np.int64)).shape == (1, 0, VOCAB)
    assert fake.steps == []


def test_the_backend_may_ask_for_smaller_chunks() -> None:
    session, fake = make(max_chunk=4, backend={"limit": 3})
    session.feed([[1, 2, 3, 4, 5]])
    assert [s.input_ids.shape[1] for s in fake.steps] == [3, 2]


def test_a_ring_keeps_its_chunks_however_long_the_sequence() -> None:
    """The scores of a call are as wide as the ring, and a limit for the tokens seen would cut
    calls into ever smaller ones."""
    session, fake = make(cache=BOUNDED)
    session.feed(np.ones((1, 30), np.int64))
    assert fake.asked == [4, 8, 10, 10, 10, 10, 10, 10]


def test_a_full_cache_asks_for_chunks_of_the_slots_in_use() -> None:
    session, fake = make()
    session.feed(np.ones((1, 9), np.int64))
    assert fake.asked == [4, 8, 9]


def test_past_the_maximum_raises_and_changes_nothing() -> None:
    cache = CacheInfo(policy="full", sinks=0, window=0, capacity=6, keys="rotated")
    session, fake = make(batch=2, cache=cache)
    session.feed([[1, 2, 3], [1, 2, 3]], lengths=[3, 2])
    with pytest.raises(ContextLimitError, match=r"sequence 0 has 3 tokens and 4 more .* 6"):
        session.feed([[1, 2, 3, 4], [1, 0, 0, 0]], lengths=[4, 1])
    assert len(fake.steps) == 1 and session.seen.tolist() == [3, 2]
    assert session.feed([[4, 5, 6], [3, 4, 5]])[:, -1, 0].tolist() == [21, 15]


def test_a_full_cache_grows_and_keeps_its_contents() -> None:
    session, fake = make()
    session.feed(np.ones((1, 200), np.int64))
    session.feed(np.ones((1, 100), np.int64))
    assert session.feed([[1]])[0, 0, 0] == 301
    session.feed(np.ones((1, 699), np.int64))
    assert fake.capacities == [256, 512, 1000]
    assert session.capacity == 1000 and session.seen.tolist() == [1000]


def test_a_bounded_cache_never_grows_and_has_no_end() -> None:
    session, fake = make(cache=BOUNDED, max_chunk=4)
    tokens = np.arange(3, 43)[None]
    logits = session.feed(tokens)[0, :, 0]
    # By hand: sinks 3 and 4, then the five newest tokens.
    assert logits[:9].tolist() == [3, 7, 12, 18, 25, 33, 42, 3 + 4 + 40, 3 + 4 + 45]
    assert logits[-1] == 3 + 4 + 38 + 39 + 40 + 41 + 42
    assert fake.capacities == [10] and session.capacity == 10


def test_reset_of_one_row_starts_it_again() -> None:
    session, fake = make(batch=2)
    session.feed([[1, 2], [3, 4]])
    session.reset([1])
    assert session.seen.tolist() == [2, 0]
    assert fake.keys[1].sum() == 0 and fake.keys[0].sum() == 3
    assert session.feed([[5], [6]])[:, 0, 0].tolist() == [8, 6]
    session.reset()
    assert session.seen.tolist() == [0, 0]


@pytest.mark.parametrize("cache", [None, BOUNDED])
def test_reset_and_fork_touch_the_slots_in_use(cache: CacheInfo | None) -> None:
    session, fake = make(batch=3, cache=cache)
    session.feed(np.full((3, 40), 5), lengths=[40, 3, 0])
    session.fork(0)  # to row 2
    session.truncate(0, 0)
    session.feed([[1], [1], [1]])
    session.fork(1, to=0)
    session.reset()
    used = 41 if cache is None else 10
    moved = [("copy", min(40, used)), ("copy", 4), ("zero", min(40, used)), ("zero", 4)]
    assert fake.moved == [*moved, ("zero", used)]
    assert not fake.keys.any()
    session.reset()
    assert fake.moved[-3:] == [("zero", 0)] * 3


def test_truncate_takes_tokens_back() -> None:
    session, _ = make(batch=2)
    session.feed([[1, 2, 3], [4, 5, 6]])
    session.truncate(1, 1)
    assert session.seen.tolist() == [3, 1]
    assert session.feed([[7], [8]])[:, 0, 0].tolist() == [13, 12]
    with pytest.raises(SessionStateError, match="cannot be cut to 9"):
        session.truncate(0, 9)


def test_truncate_of_a_bounded_cache_reaches_back_max_chunk() -> None:
    tokens = np.arange(3, 23)[None]
    straight, _ = make(cache=BOUNDED)
    expected = straight.feed(tokens)[0, :, 0]
    session, _ = make(cache=BOUNDED)
    session.feed(tokens)
    with pytest.raises(SessionStateError, match="back to 16"):
        session.truncate(0, 15)
    session.truncate(0, 16)
    # Further back is out of reach although the sequence is shorter now.
    with pytest.raises(SessionStateError, match="back to 16"):
        session.truncate(0, 15)
    assert session.feed(tokens[:, 16:])[0, :, 0].tolist() == expected[16:].tolist()
    session.truncate(0, 0)
    assert session.feed(tokens)[0, :, 0].tolist() == expected.tolist()


def test_fork_copies_a_sequence_to_the_first_free_row() -> None:
    session, _ = make(batch=3)
    session.feed([[1, 2], [3, 4], [0, 0]], lengths=[2, 2, 0])
    assert session.fork(1) == 2
    assert session.seen.tolist() == [2, 2, 2]
    assert session.feed([[5], [6], [7]])[:, 0, 0].tolist() == [8, 13, 14]
    with pytest.raises(SessionStateError, match="all 3 sequences have tokens"):
        session.fork(0)
    assert session.fork(0, to=2) == 2
    assert session.feed([[1], [1], [1]])[:, 0, 0].tolist() == [9, 14, 9]
    with pytest.raises(UserError, match="row 3 does not exist"):
        session.fork(0, to=3)


def test_load_cache_places_tokens_at_far_positions() -> None:
    session, fake = make(batch=2)
    given = np.stack([np.arange(700.0), np.arange(700.0) + 1])[:, None, :, None]
    session.load_cache([given], [given], 700)
    assert session.seen.tolist() == [700, 700] and fake.capacities == [256, 768]
    logits = session.feed([[1], [1]])
    assert logits[:, 0, 0].tolist() == [699 * 350 + 1, 699 * 350 + 700 + 1]
    assert logits[:, 0, 1].tolist() == [700, 700]
    assert session.read_cache(0)[0][:, 0, 5, 0].tolist() == [5, 6]


def test_load_cache_of_a_ring_takes_sinks_and_the_newest_tokens() -> None:
    session, fake = make(cache=BOUNDED)
    # Tokens 0, 1 and 94 … 99 of a sequence of 100, marked by their position.
    given = np.array([0.0, 1, 94, 95, 96, 97, 98, 99])[None, None, :, None]
    session.load_cache([given], [given], 100)
    # slot = 2 + (t - 2) mod 8, by hand: 94 → 6, 95 → 7, 96 → 8, 97 → 9, 98 → 2, 99 → 3
    assert fake.keys[0, 0, :, 0].tolist() == [0, 1, 98, 99, 0, 0, 94, 95, 96, 97]
    assert session.feed([[3]])[0, 0, 0] == 0 + 1 + 96 + 97 + 98 + 99 + 3


@pytest.mark.parametrize(("given", "back"), [(10, 96), (8, 98), (7, 99)])
def test_a_loaded_ring_reaches_back_as_far_as_what_was_given(given: int, back: int) -> None:
    """The next token sees itself and four before it; the newest given - 2 are there."""
    session, _ = make(cache=BOUNDED)
    rows = np.zeros((1, 1, given, 1))
    session.load_cache([rows], [rows], 100)
    with pytest.raises(SessionStateError, match=f"back to {back}"):
        session.truncate(0, back - 1)
    session.truncate(0, back)
    session.feed([[1]])
    with pytest.raises(SessionStateError, match=f"back to {back}"):
        session.truncate(0, back - 1)


def test_a_load_that_fails_loses_the_sequences() -> None:
    session, fake = make(batch=2)
    session.feed([[1, 2], [3, 4]])
    fake.fail_write = True
    rows = np.ones((2, 1, 5, 1))
    with pytest.raises(RuntimeError, match="the runtime failed"):
        session.load_cache([rows], [rows], 5)
    with pytest.raises(SessionStateError, match=r"reset\(\[0\]\)"):
        session.feed([[1], [1]])
    fake.fail_write = False
    session.load_cache([rows], [rows], 5)
    assert session.feed([[1], [1]])[:, 0, 0].tolist() == [6, 6]


def test_load_cache_refuses_what_does_not_fit() -> None:
    session, _ = make(layers=2)
    good = np.zeros((1, 1, 5, 1), np.float32)
    with pytest.raises(UserError, match="2 layers"):
        session.load_cache([good], [good], 5)
    with pytest.raises(UserError, match=r"\[1, 1, tokens, 1\]"):
        session.load_cache([good, good[..., None]], [good, good], 5)
    with pytest.raises(UserError, match="5 tokens given for a length of 6"):
        session.load_cache([good, good], [good, good], 6)
    assert session.seen.tolist() == [0]


def test_the_rope_length_is_fixed_for_a_whole_feed() -> None:
    session, fake = make(batch=2, max_chunk=2, rope_length=True)
    session.feed([[1, 2, 3], [4, 0, 0]], lengths=[3, 1])
    assert [s.rope_length.tolist() for s in fake.steps if s.rope_length is not None] == [
        [3, 1]
    ] * 2
    session.feed([[5], [6]], 90)
    session.feed([[5], [6]], [80, 70])
    assert fake.steps[-2].rope_length is not None and fake.steps[-1].rope_length is not None
    assert fake.steps[-2].rope_length.tolist() == [90, 90]
    assert fake.steps[-1].rope_length.tolist() == [80, 70]
    with pytest.raises(UserError, match="planned_length 5 is less than the 6 tokens"):
        session.feed([[5], [6]], 5)
    with pytest.raises(UserError, match="beyond the package's maximum context of 1000"):
        session.feed([[5], [6]], 1001)


def test_static_packages_get_no_rope_length() -> None:
    session, fake = make()
    session.feed([[1]], 50)
    assert fake.steps[0].rope_length is None


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        ([[1.0, 2.0]], None, "token ids are integers"),
        ([[True, False]], None, "token ids are integers"),
        ([[VOCAB]], None, f"token id {VOCAB} is outside"),
        ([[-1]], None, "token id -1 is outside"),
        ([[1], [2]], None, r"shape \[2, 1\]: the session takes \[1, tokens\]"),
        ([[1, 2], [3]], None, "different length"),
        ([[1, 2]], [3], "rows have 0 to 2 tokens"),
        ([[1, 2]], [1, 1], "give 1 whole numbers"),
        ([[1, 2]], [-1], "rows have 0 to 2 tokens"),
    ],
)
def test_wrong_input_is_refused(tokens: Any, lengths: Any, message: str) -> None:
    session, fake = make()
    with pytest.raises(UserError, match=message):
        session.feed(tokens, lengths=lengths)
    assert fake.steps == [] and session.seen.tolist() == [0]


def test_a_failed_call_leaves_the_lengths_and_a_full_cache_usable() -> None:
    session, fake = make(max_chunk=2, backend={"fail_at": 1})
    with pytest.raises(RuntimeError, match="the runtime failed"):
        session.feed([[1, 2, 3, 4]])
    assert session.seen.tolist() == [0]
    fake.fail_at = None
    assert session.feed([[1, 2, 3, 4]])[0, :, 0].tolist() == [1, 3, 6, 10]


def test_a_failed_call_loses_a_ring_that_was_overwritten() -> None:
    session, fake = make(cache=BOUNDED, max_chunk=4)
    session.feed(np.arange(3, 23)[None])
    fake.fail_at = len(fake.steps) + 2
    with pytest.raises(RuntimeError, match="the runtime failed"):
        session.feed(np.arange(3, 23)[None])
    with pytest.raises(SessionStateError, match=r"reset\(\[0\]\)"):
        session.feed([[1]])
    fake.fail_at = None
    session.reset([0])
    assert session.feed([[5]])[0, 0, 0] == 5


def slow_steps(fake: FakeBackend) -> tuple[threading.Event, threading.Event]:
    """Steps say that they have begun and wait for leave to end."""
    entered, leave = threading.Event(), threading.Event()
    step = fake.step

    def slow(given: Any) -> Any:
        entered.set()
        assert leave.wait(10)
        assert not fake.closed
        return step(given)

    fake.step = slow  # type: ignore[method-assign]
    return entered, leave


def test_concurrent_use_raises() -> None:
    session, fake = make()
    entered, leave = slow_steps(fake)
    thread = threading.Thread(target=session.feed, args=([[1]],))
    thread.start()
    assert entered.wait(10)
    try:
        with pytest.raises(SessionStateError, match="in use by another thread"):
            session.feed([[2]])
    finally:
        leave.set()
        thread.join(10)
    assert session.seen.tolist() == [1]


def test_close_waits_for_a_call_of_another_thread() -> None:
    session, fake = make()
    entered, leave = slow_steps(fake)
    feeding = threading.Thread(target=session.feed, args=([[1]],))
    closing = threading.Thread(target=session.close)
    feeding.start()
    assert entered.wait(10)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive() and fake.closed == 0
    leave.set()
    feeding.join(10)
    closing.join(10)
    assert fake.closed == 1 and session.seen.tolist() == [1]


def test_a_closed_session_says_so() -> None:
    session, fake = make()
    with session:
        session.feed([[1]])
    session.close()
    assert fake.closed == 1
    with pytest.raises(SessionStateError, match="closed"):
        session.feed([[1]])


def test_a_chunk_beyond_the_package_is_refused() -> None:
    with pytest.raises(UserError, match="chunk is 5: the package takes 1 to 4"):
        make(chunk=5)


def test_open_session_names_what_is_wrong(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="is not a package"):
        open_session(tmp_path)
    manifest().save(tmp_path)
    with pytest.raises(UserError, match="backend 'tflite' is unknown: use ort, tensorrt"):
        open_session(tmp_path, "tflite")
    with pytest.raises(UserError, match=r"has no model\.onnx"):
        open_session(tmp_path)
    with pytest.raises(UserError, match="batch is 0"):
        open_session(tmp_path, batch=0)
    with pytest.raises(UserError, match="threads is 0"):
        open_session(tmp_path, threads=0)
