"""A graph with onnxruntime-genai's interface against the same graph with the package's own.

Both run in onnxruntime on a CPU: two sequences of different lengths, padded on the right as
onnxruntime-genai pads them, then a few tokens of both; with caches that grow and with a buffer
that is past and present at once. onnxruntime-genai itself is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.manifest import MODEL_NAME, Manifest, TensorInfo
from ctx_export.passes.verify import RewriteError
from ctx_export.runtime.backend import Floats, Ints
from ctx_export.runtime.cache_codec import NUMPY_TYPES

_LENGTHS = (29, 37)  # of the two sequences, or what the package takes
_STEPS = 3  # tokens of both after that
# Of the logit scale. Sums of another order differ by rounding; in half precision or over a
# quantised cache the rounding of a key may go the other way.
_EXACT, _ROUNDED = 1e-4, 1e-2
_NOT_ON_A_CPU = ("bf16", "float8e4m3fn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Two sequences, [2,N] padded on the right, and the tokens [2] of each step after them."""

    ids: Ints
    lengths: tuple[int, int]
    steps: tuple[Ints, ...]

    @property
    def total(self) -> int:
        return int(self.ids.shape[1]) + len(self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What the graph with the package's own interface gives for `tokens`: logits [2,V] after the
    sequences and after each step."""

    tokens: Tokens
    logits: tuple[Floats, ...]


def before_conversion(package: Path, manifest: Manifest) -> Before | None:
    """Run a package of its own interface; None where onnxruntime's CPU provider has no such
    types."""
    from ctx_export.runtime.session import open_session

    if not {manifest.precision, manifest.cache_dtype}.isdisjoint(_NOT_ON_A_CPU):
        return None
    tokens = check_tokens(manifest)
    with open_session(package, "ort", batch=2, providers=["CPUExecutionProvider"]) as session:
        found = [session.feed(tokens.ids, lengths=tokens.lengths, logits="last")]
        found += [session.feed(step[:, None], logits="last") for step in tokens.steps]
    return Before(tokens=tokens, logits=tuple(found))


def checked(package: Path, manifest: Manifest, before: Before) -> tuple[Manifest, str]:
    """Compare the converted package with `before`: the manifest with the result, and a line.

    Raises RewriteError where they differ by more than rounding.
    """
    error = largest_difference(package, manifest, before)
    exact = manifest.precision == "fp32" and not manifest.quantised
    limit = _EXACT if exact else _ROUNDED
    if not error <= limit:  # an error that is no number fails
        raise RewriteError(
            f"with onnxruntime-genai's interface the graph's logits differ by {error:.1e} of "
            f"their scale from what they were, more than {limit:g}"
        )
    result = {"max_error": error, "limit": limit, "sequences": list(before.tokens.lengths)}
    validation = {**(manifest.validation or {}), "interface": result}
    told = f"its logits are those from before to {error:.1e} of their scale, growing and shared"
    return replace(manifest, validation=validation), told


def check_tokens(manifest: Manifest) -> Tokens:
    """What the check runs, within the package's limits."""
    most = max(1, min(manifest.max_chunk, (manifest.max_context or 1 << 20) - _STEPS))
    first, second = (min(length, most) for length in _LENGTHS)
    rng = np.random.default_rng(0)
    vocab = int(manifest.model["vocab"])
    return Tokens(
        ids=rng.integers(0, vocab, (2, max(first, second))),
        lengths=(first, second),
        steps=tuple(rng.integers(0, vocab, 2) for _ in range(_STEPS)),
    )


def largest_difference(package: Path, manifest: Manifest, before: Before) -> float:
    """Of the converted package's logits from `before`, as a share of the logit scale."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        package / MODEL_NAME, options, providers=["CPUExecutionProvider"]
    )
    worst = 0.0
    for run in (_growing, _shared):
        found = run(session, manifest, before.tokens)
        for ours, theirs in zip(found, before.logits, strict=True):
            # np.maximum, unlike max, keeps an error that is no number.
            worst = float(np.maximum(worst, np.abs(ours[:, 0] - theirs).max()))
    return worst / max(float(np.abs(logits).max()) for logits in before.logits)


def _calls(tokens: Tokens) -> Iterator[dict[str, Ints]]:
    """input_ids and attention_mask of each call."""
    width = tokens.ids.shape[1]
    mask = (np.arange(width) < np.array(tokens.lengths)[:, None]).astype(np.int64)
    yield {"input_ids": tokens.ids, "attention_mask": mask}
    for step in tokens.steps:
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        yield {"input_ids": np.ascontiguousarray(step[:, None]), "attention_mask": mask}


def _growing(session: Any, manifest: Manifest, tokens: Tokens) -> Iterator[NDArray[Any]]:
    """Past is what the call before gave as present, at first nothing."""
    pairs = _pairs(manifest)
    names = ["logits", *(present.name for _, present in pairs)]
    past = {tensor.name: _zeros(tensor, 0) for tensor, _ in pairs}
    for call in _calls(tokens):
        logits, *caches = session.run(names, {**call, **past})
        past = {tensor.name: cache for (tensor, _), cache in zip(pairs, caches, strict=True)}
        yield logits


def _shared(session: Any, manifest: Manifest, tokens: Tokens) -> Iterator[NDArray[Any]]:
    """Past and present are one buffer, with room to spare."""
    import onnxruntime as ort

    binding = session.io_binding()
    buffers = []
    for past, present in _pairs(manifest):
        buffer = ort.OrtValue.ortvalue_from_numpy(_zeros(past, tokens.total + 5))
        buffers.append(buffer)
        binding.bind_ortvalue_input(past.name, buffer)
        binding.bind_ortvalue_output(present.name, buffer)
    shape = (2, 1, int(manifest.model["vocab"]))
    dtype = NUMPY_TYPES[manifest.of_role("logits")[0].dtype]
    for call in _calls(tokens):
        for name, array in call.items():
            binding.bind_cpu_input(name, array)
        logits = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))
        binding.bind_ortvalue_output("logits", logits)
        session.run_with_iobinding(binding)
        yield logits.numpy()


def _pairs(manifest: Manifest) -> list[tuple[TensorInfo, TensorInfo]]:
    """Past and present of every layer's keys and values."""
    return [
        pair
        for part in ("key", "value")
        for pair in zip(
            manifest.of_role(f"past_{part}"), manifest.of_role(f"present_{part}"), strict=True
        )
    ]


def _zeros(tensor: TensorInfo, slots: int) -> NDArray[Any]:
    _, heads, _, dim = tensor.shape
    return np.zeros((2, int(heads), slots, int(dim)), NUMPY_TYPES[tensor.dtype])
