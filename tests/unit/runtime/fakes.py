"""A backend of plain numpy whose logits say which tokens a row sees, and the manifests it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.manifest import CacheInfo, Manifest, TensorInfo
from ctx_export.runtime.backend import Floats, Ints, Step

VOCAB = 64


def manifest(
    *,
    cache: CacheInfo | None = None,
    max_chunk: int = 4,
    layers: int = 1,
    kv_heads: int = 1,
    head_dim: int = 1,
    vocab: int = VOCAB,
    rope_length: bool = False,
    dtype: str = "float32",
    heads: int = 1,
    max_batch: int = 3,
    **changes: Any,
) -> Manifest:
    """A package's manifest; the default is a full cache of 1000 tokens."""
    cache = cache or CacheInfo(policy="full", sinks=0, window=0, capacity=1000, keys="rotated")
    slots: int | str = "slots" if cache.policy == "full" else cache.capacity
    shape = ("batch", kv_heads, slots, head_dim)
    io = [
        TensorInfo(name="input_ids", dtype="int64", shape=("batch", "tokens"), role="input_ids"),
        TensorInfo(name="seen", dtype="int64", shape=("batch",), role="seen"),
        TensorInfo(name="new", dtype="int64", shape=("batch",), role="new"),
        TensorInfo(name="logit_rows", dtype="int64", shape=("batch", "rows"), role="logit_rows"),
        TensorInfo(name="logits", dtype=dtype, shape=("batch", "rows", vocab), role="logits"),
    ]
    if rope_length:
        io.append(
            TensorInfo(name="rope_length", dtype="int64", shape=("batch",), role="rope_length")
        )
    for layer in range(layers):
        for past, present, what in (("past_key_values", "present", w) for w in ("key", "value")):
            for stem, role in ((past, f"past_{what}"), (present, f"present_{what}")):
                io.append(
                    TensorInfo(
                        name=f"{stem}.{layer}.{what}",
                        dtype=dtype,
                        shape=shape,
                        role=role,
                        layer=layer,
                    )
                )
    values: dict[str, Any] = {
        "model": {
            "family": "llama",
            "layers": layers,
            "heads": heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "vocab": vocab,
            "original_context": 16,
            "bos_token_id": 1,
            "eos_token_ids": [2],
        },
        "method": "none",
        "scaling": {},
        "factor": 1.0,
        "max_context": cache.capacity if cache.policy == "full" else None,
        "max_batch": max_batch,
        "max_chunk": max_chunk,
        "layers": (cache,) * layers,
        "precision": "fp32",
        "io": tuple(io),
        "weights": {"files": [], "storage": "linked"},
        "generator": {},
    }
    return Manifest(**{**values, **changes})


@dataclass
class FakeBackend:
    """Caches hold token ids. Logit 0 of a row is the sum of the ids it sees, logit 1 its position,
    logit 2 the rope length of its call."""

    batch: int
    cache: CacheInfo
    limit: int = 1 << 30  # rows of a call
    asked: list[int] = field(default_factory=list)  # slots that a limit was asked for
    fail_at: int | None = None  # index of the call that raises
    steps: list[Step] = field(default_factory=list)
    capacities: list[int] = field(default_factory=list)
    moved: list[tuple[str, int]] = field(default_factory=list)  # slots zeroed or copied
    fail_write: bool = False
    closed: int = 0

    def chunk_limit(self, scores: int) -> int:
        self.asked.append(scores)
        return self.limit

    def grow(self, capacity: int) -> None:
        new = np.zeros((self.batch, 1, capacity, 1), np.float32)
        if self.capacities:
            new[:, :, : self.keys.shape[2]] = self.keys
        self.keys = new
        self.capacities.append(capacity)

    def slot(self, token: int) -> int:
        ring = self.cache.capacity - self.cache.sinks
        if self.cache.policy == "full" or token < self.cache.sinks:
            return token
        return self.cache.sinks + (token - self.cache.sinks) % ring

    def sees(self, query: int, key: int) -> bool:
        near = self.cache.window == 0 or query - key < self.cache.window
        return key <= query and (near or key < self.cache.sinks)

    def step(self, step: Step) -> Floats:
        if self.fail_at == len(self.steps):
            raise RuntimeError("the runtime failed")
        self.steps.append(step)
        rows = step.input_ids.shape[1]
        every = np.zeros((self.batch, rows, VOCAB), np.float32)
        for b in range(self.batch):
            seen, new = int(step.seen[b]), int(step.new[b])
            for row in range(new):
                self.keys[b, 0, self.slot(seen + row), 0] = step.input_ids[b, row]
            for row in range(new):
                tokens = [t for t in range(seen + row + 1) if self.sees(seen + row, t)]
                every[b, row, 0] = sum(self.keys[b, 0, self.slot(t), 0] for t in tokens)
                every[b, row, 1] = seen + row
                every[b, row, 2] = -1 if step.rope_length is None else step.rope_length[b]
        return np.take_along_axis(every, step.logit_rows[:, :, None], axis=1)

    def copy_row(self, source: int, target: int, slots: int) -> None:
        self.moved.append(("copy", slots))
        self.keys[target, :, :slots] = self.keys[source, :, :slots]

    def zero(self, row: int, slots: int) -> None:
        self.moved.append(("zero", slots))
        self.keys[row, :, :slots] = 0

    def write(self, layer: int, slots: Ints, keys: NDArray[Any], values: NDArray[Any]) -> None:
        if self.fail_write:
            raise RuntimeError("the runtime failed")
        self.keys[:, :, slots] = keys

    def read(self, layer: int) -> tuple[Floats, Floats]:
        return self.keys.copy(), self.keys.copy()

    @property
    def cache_bytes(self) -> int:
        return self.keys.nbytes

    def close(self) -> None:
        self.closed += 1
