"""Sessions: feed tokens in any split, get the same logits; manage the sequences of a batch."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.runtime.backend import Backend, Floats, Ints, Step
from ctx_export.runtime.chunks import Chunk, chunks
from ctx_export.runtime.contract import Contract
from ctx_export.runtime.errors import SessionStateError
from ctx_export.runtime.landmarks import fed_tokens
from ctx_export.runtime.opening import BACKENDS, BackendOptions, make_backend
from ctx_export.runtime.placing import needed_rows, placed
from ctx_export.runtime.sequences import Sequences, grown_capacity
from ctx_export.runtime.tokens import feed_lengths, rope_lengths, token_array

Logits = Literal["all", "last"]


def open_session(
    path: str | Path,
    backend: str = "ort",
    *,
    batch: int = 1,
    chunk: int | None = None,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
) -> Session:
    """Open the package at `path`.

    `backend`: "ort", "tensorrt" or "tensorrt-rtx". `batch`: sequences of the session. `chunk`:
    most tokens of one call, at most the package's max_chunk (the default). `threads` and
    `providers` (CUDAExecutionProvider, CPUExecutionProvider) are onnxruntime's.
    Raises UserError for a path that is no package, and for a backend that is unknown or cannot
    run here.
    """
    manifest = Manifest.load(Path(path))
    contract = Contract.from_manifest(manifest)
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is unknown: use {', '.join(BACKENDS)}")
    if batch < 1:
        raise UserError(f"batch is {batch}: a session needs at least one sequence")
    options = BackendOptions(batch=batch, threads=threads, providers=tuple(providers or ()))
    made = make_backend(backend, Path(path), manifest, contract, options)
    try:
        return Session(manifest, contract, made, batch=batch, chunk=chunk)
    except BaseException:
        made.close()
        raise


class Session:
    """A package with the caches of `batch` sequences. Not for use by two threads at once.

    `feed` advances all sequences; `reset`, `truncate` and `fork` manage single ones. Sequences are
    numbered 0 … batch - 1 and called rows.
    """

    def __init__(
        self,
        manifest: Manifest,
        contract: Contract,
        backend: Backend,
        *,
        batch: int = 1,
        chunk: int | None = None,
    ) -> None:
        if chunk is not None and not 1 <= chunk <= contract.max_chunk:
            raise UserError(
                f"chunk is {chunk}: the package takes 1 to {contract.max_chunk} tokens a call"
            )
        self.manifest = manifest
        self.contract = contract
        self.batch = batch
        self._chunk = chunk or contract.max_chunk
        self._backend: Backend | None = backend
        self._sequences = Sequences(
            batch, (layer.cache for layer in contract.layers), contract.max_context
        )
        self._grows = any(layer.slots is None for layer in contract.layers)
        self._capacity = 0
        self._lock = threading.Lock()
        self._grow_to(1)

    @property
    def seen(self) -> Ints:
        """Tokens of every sequence so far, [B]; a copy."""
        return self._sequences.lengths

    @property
    def capacity(self) -> int:
        """Slots that a sequence's cache has now; a full cache grows up to the baked maximum."""
        return self._capacity

    @property
    def cache_bytes(self) -> int:
        """Memory that the caches take now."""
        with self._exclusive() as backend:
            return backend.cache_bytes

    def feed(
        self,
        token_ids: ArrayLike,
        planned_length: int | Sequence[int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        logits: Logits = "all",
    ) -> Floats:
        """Append tokens and return logits, float32.

        `token_ids` [B,N] ints, or [N] for one sequence; `lengths` [B] says how many of each row
        are tokens (default all; 0 leaves a sequence as it is). `planned_length`, one number or
        one per row: the length that each sequence will reach, for methods whose frequencies
        depend on it (default: seen + new).
        Returns [B,N,V] for "all" or [B,V], the logits after each row's last token, for "last";
        places without a token are 0.
        Raises ContextLimitError past a full cache's maximum, UserError for tokens, lengths or
        plans that make no sense; in both cases nothing has changed.
        """
        with self._exclusive() as backend:
            if logits not in ("all", "last"):
                raise UserError(f"logits is {logits!r}: ask for 'all' or 'last'")
            ids = token_array(token_ids, self.batch, self.contract.vocab)
            counts = feed_lengths(lengths, ids)
            self._sequences.check_feed(counts)
            rope = rope_lengths(planned_length, self._sequences.seen, counts, self.contract)
            texts, rows = counts, None
            if self._sequences.landmarks is not None:
                before = self._sequences.lengths
                ids, counts, rows = self._sequences.landmarks.spread(ids, counts, before)
            self._grow_to(int((self._sequences.seen + counts).max()))
            width = ids.shape[1] if logits == "all" else 1
            out = np.zeros((self.batch, width, self.contract.vocab), np.float32)
            self._run(backend, ids, counts, rope, out, every=logits == "all")
            if logits == "last":
                return out[:, 0]
            return out if rows is None else _chosen(out, rows, texts)

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Forget the sequences `rows`, all by default."""
        with self._exclusive() as backend:
            chosen = range(self.batch) if rows is None else [self._row(row) for row in rows]
            for row in chosen:
                # Masked slots still take part with weight 0, which a NaN would survive.
                backend.zero(row, self._sequences.used_slots(row))
                self._sequences.reset(row)

    def truncate(self, row: int, n: int) -> None:
        """Sequence `row` keeps its first `n` tokens.

        `n` counts the text's tokens. In a bounded cache the spare slots allow max_chunk tokens to
        be taken back (all of them before the first wrap, and always down to 0); farther back it
        raises SessionStateError.
        """
        with self._exclusive():
            self._sequences.truncate(self._row(row), n)

    def fork(self, row: int, to: int | None = None) -> int:
        """Copy sequence `row` into row `to`, by default the first one without tokens.

        Returns the row written. Raises SessionStateError where none is free.
        """
        with self._exclusive() as backend:
            source = self._row(row)
            target = self._sequences.free_row() if to is None else self._row(to)
            self._sequences.check_usable([source])
            if source != target:
                backend.copy_row(source, target, self._sequences.slots(source))
                self._sequences.copy(source, target)
            return target

    def load_cache(
        self,
        keys: Sequence[NDArray[Any]],
        values: Sequence[NDArray[Any]],
        length: int,
    ) -> None:
        """Make every sequence `length` tokens long with the given cache, a [B,Hkv,P,D] per layer.

        Keys are as the package stores them (`cache.keys` of the manifest: rotated or unrotated).
        P = length, or in a bounded cache less: the first `sinks` rows are then the first tokens
        and the others the newest ones. Rows that a bounded cache no longer holds are dropped; what
        a cache keeps of a block's average is computed from its rows. `length` counts the tokens of
        the text, P also landmark tokens.
        """
        with self._exclusive() as backend:
            layers = self.contract.layers
            if len(keys) != len(layers) or len(values) != len(layers):
                raise UserError(
                    f"{len(keys)} keys and {len(values)} values given: the package has "
                    f"{len(layers)} layers"
                )
            maximum = self.contract.max_context
            if maximum is not None and length > maximum:
                raise UserError(f"length {length} is beyond the maximum context of {maximum}")
            if self._sequences.landmarks is not None:
                length = fed_tokens(self._sequences.landmarks, length)
            for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
                self._check_cache(layer, key, value, length)
            self._grow_to(length)
            self._sequences.placing(length)
            for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
                for slots, *rows in placed(key, value, length, layers[layer].cache):
                    backend.write(layer, slots, *rows)
            self._sequences.place(length, min(key.shape[2] for key in keys))

    def read_cache(self, layer: int) -> tuple[Floats, Floats]:
        """Keys and values of `layer`, [B,Hkv,C,D] float32 copies; slots beyond what a sequence has
        used hold whatever was there."""
        with self._exclusive() as backend:
            if not 0 <= layer < len(self.contract.layers):
                raise UserError(
                    f"layer {layer} does not exist: the package has {len(self.contract.layers)}"
                )
            return backend.read(layer)

    def close(self) -> None:
        """Release the model and the caches, after a call that another thread may be in; closing
        twice is harmless."""
        with self._lock:
            backend, self._backend = self._backend, None
            if backend is not None:
                backend.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _exclusive(self) -> Iterator[Backend]:
        if not self._lock.acquire(blocking=False):
            raise SessionStateError(
                "the session is in use by another thread: wait for that call, or open one session "
                "per thread"
            )
        try:
            if self._backend is None:
                raise SessionStateError("the session is closed: open the package again")
            yield self._backend
        finally:
            self._lock.release()

    def _run(
        self,
        backend: Backend,
        ids: Ints,
        counts: Ints,
        rope: Ints | None,
        out: Floats,
        *,
        every: bool,
    ) -> None:
        """Call the model chunk by chunk; `seen` moves when all of them succeeded."""
        sequences = self._sequences

        def limit(tokens: int) -> int:
            return backend.chunk_limit(sequences.most_scores(tokens))

        try:
            for chunk in chunks(counts, sequences.seen, self._chunk, limit):
                start = sequences.seen + np.minimum(counts, chunk.start)
                sequences.touched(start + chunk.new)
                step = Step(
                    input_ids=self._padded(ids, chunk),
                    seen=start,
                    new=chunk.new,
                    logit_rows=chunk.all_rows if every else chunk.last_rows,
                    rope_length=rope,
                )
                _store(out, backend.step(step), chunk, every=every)
        except BaseException:
            sequences.failed()
            raise
        sequences.advance(counts)

    @staticmethod
    def _padded(ids: Ints, chunk: Chunk) -> Ints:
        """The chunk's columns [B,S] with 0 where a row has no token."""
        part = ids[:, chunk.start : chunk.start + chunk.width]
        return np.where(np.arange(chunk.width) < chunk.new[:, None], part, 0)

    def _grow_to(self, needed: int) -> None:
        """Room for sequences of `needed` tokens."""
        backend, maximum = self._backend, self.contract.cache.capacity
        needed = self._sequences.most_slots(needed)
        capacity = grown_capacity(self._capacity, needed, maximum) if self._grows else maximum
        if backend is not None and capacity != self._capacity:
            backend.grow(capacity)
            self._capacity = capacity

    def _row(self, row: int) -> int:
        if not 0 <= row < self.batch:
            raise UserError(
                f"row {row} does not exist: the session has rows 0 to {self.batch - 1}"
            )
        return row

    def _check_cache(
        self, layer: int, key: NDArray[Any], value: NDArray[Any], length: int
    ) -> None:
        info = self.contract.layers[layer]
        cache = info.cache
        given = key.shape[2] if key.ndim == 4 else -1
        if key.shape != value.shape or key.shape != (
            self.batch,
            info.kv_heads,
            given,
            info.head_dim,
        ):
            raise UserError(
                f"layer {layer}: keys {list(key.shape)} and values {list(value.shape)} are not "
                f"[{self.batch}, {info.kv_heads}, tokens, {info.head_dim}]"
            )
        least = needed_rows(length, cache)
        if not least <= given <= length:
            raise UserError(
                f"layer {layer}: {given} tokens given for a length of {length}: give {least}"
                + (f" to {length}" if least < length else "")
            )


def _chosen(logits: Floats, rows: Ints, counts: Ints) -> Floats:
    """Of logits [B,W,V] those of `rows` [B,N]; 0 from the `counts` [B] on."""
    valid = np.arange(rows.shape[1]) < counts[:, None]
    row, column = np.nonzero(valid)
    chosen = np.zeros((*rows.shape, logits.shape[2]), np.float32)
    chosen[row, column] = logits[row, rows[row, column]]
    return chosen


def _store(out: Floats, logits: Floats, chunk: Chunk, *, every: bool) -> None:
    """Put one call's logits [B,R,V] where they belong."""
    if not every:
        ends = chunk.new > 0
        out[ends, 0] = logits[ends, 0]
        return
    rows = np.arange(chunk.width) < chunk.new[:, None]
    out[:, chunk.start : chunk.start + chunk.width][rows] = logits[rows]
