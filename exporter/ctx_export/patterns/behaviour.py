"""What a whole attention computes, read off by running it: which tokens see which, and whether it
is scale · q·k, capped, masked and weighed as its operators say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ctx_export.patterns.attention import AttentionMatch
from ctx_export.patterns.graph_view import GraphView, inputs_of
from ctx_export.patterns.match import Miss, constant, describe, dimension, number
from ctx_export.patterns.probe import Extent, ProbeError, run, stand_in
from ctx_export.patterns.region import Region

_TOKENS = 9
_TOLERANCE = 1e-4  # of the largest result, in float32
_LONGEST = 1 << 27  # tokens: no window is wider
_TRIED = (3, 5)  # tokens that a number in the graph is replaced by to see whether it is a window

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the queries, keys and values of an attention come from."""

    q: Region
    k: Region
    v: Region


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """`window`: tokens that a token sees, itself included, 0 for all before it; `transposed`:
    the result is [B,S,H,D]."""

    window: int
    transposed: bool


def observe(view: GraphView, match: AttentionMatch, sources: Sources) -> Behaviour | Miss:
    """What the attention `match` does with its `sources`; a Miss where that is not causal
    attention."""
    try:
        subject = _Subject(view, match, sources)
        visible = subject.visible()
        window = _window(visible)
        subject.check(visible)
        if window == 0:
            window = _wider_window(subject)
    except ProbeError as error:
        return _miss(match, f"it cannot be run by itself: {error}")
    except _Unlike as error:
        return _miss(match, str(error))
    return Behaviour(window=window, transposed=subject.transposed)


class _Unlike(Exception):
    """An attention that computes something else; the text says what."""


class _Subject:
    """An attention that is run with chosen queries, keys and values."""

    def __init__(self, view: GraphView, match: AttentionMatch, sources: Sources) -> None:
        self._view, self._match, self._sources = view, match, sources
        sizes = [_heads_dim(region) for region in (sources.q, sources.k, sources.v)]
        (self._heads, self._dim), (self._kv_heads, _), (_, value_dim) = sizes
        if len({dim for _, dim in sizes}) > 1 or sizes[1] != sizes[2]:
            raise _Unlike(
                f"(heads, dim) of its queries, keys and values are {sizes}: keys and values need "
                "one head dimension, that of the queries"
            )
        self.tokens = _TOKENS
        while self.tokens in (self._heads, self._dim, value_dim):
            self.tokens += 1
        self.transposed = False

    def _run(
        self, parts: tuple[Array, Array, Array], constants: Any = None
    ) -> tuple[Array, Array, Array]:
        """The result [B,H,S,D], and the q and k that the scores are made of, as they are."""
        regions = (self._sources.q, self._sources.k, self._sources.v)
        feeds = {
            region.source: np.ascontiguousarray(part.swapaxes(1, 2) if region.transposed else part)
            for region, part in zip(regions, parts, strict=True)
        }
        if len(feeds) != 3:
            raise _Unlike("its queries, keys and values are not three tensors")
        match = self._match
        extent = Extent(batch=len(parts[0]), tokens=self.tokens)
        y, q, k = run(self._view, [match.y, match.q, match.k], feeds, extent, constants).values
        wanted = (extent.batch, self._heads, self.tokens, self._dim)
        self.transposed = y.shape != wanted
        y = y.swapaxes(1, 2) if self.transposed and y.ndim == 4 else y
        if y.shape != wanted:
            raise _Unlike(f"its result has shape {list(y.shape)} where {list(wanted)} is expected")
        return y, q, k

    def visible(self, constants: Any = None) -> NDArray[np.bool_]:
        """[S,S] whether token s sees token t: equal scores, and values that tell tokens apart."""
        count = self.tokens
        q = np.zeros((count, self._heads, count, self._dim), np.float32)
        k = np.zeros((count, self._kv_heads, count, self._dim), np.float32)
        v = np.zeros_like(k)
        v[np.arange(count), :, np.arange(count)] = 1
        weights = self._run((q, k, v), constants)[0][..., 0].transpose(1, 2, 0)  # [H,S,T]
        seen = weights > 0
        if (seen != seen[0]).any():
            raise _Unlike("its heads see different tokens")
        largest = weights.max(-1, keepdims=True)
        if not np.allclose(weights, np.where(seen, largest, 0), rtol=1e-4):
            raise _Unlike(
                "its mask adds numbers that differ between tokens, such as ALiBi's or learned "
                "distances: positions that rotation does not stand for"
            )
        visible: NDArray[np.bool_] = seen[0]
        return visible

    def check(self, visible: NDArray[np.bool_]) -> None:
        """Raise _Unlike where the result is not that of the numbers that `match` states."""
        generator = np.random.default_rng(0)
        parts = tuple(
            generator.standard_normal((2, heads, self.tokens, self._dim)).astype(np.float32)
            for heads in (self._heads, self._kv_heads, self._kv_heads)
        )
        y, q, k = self._run(parts)  # type: ignore[arg-type]
        expected = self._attention(self._heads_first(q), self._heads_first(k), parts[2], visible)
        error = float(np.abs(y - expected).max() / np.abs(expected).max())
        if not error <= _TOLERANCE:
            raise _Unlike(
                f"run by itself it differs by {error:.1e} of the largest result from the softmax "
                f"of {self._match.scale:g} · q·k with soft cap {self._match.softcap:g}, masked "
                "and applied to v"
            )

    def _heads_first(self, array: Array) -> NDArray[np.float64]:
        """[B,H,S,D] of what the scores are made of."""
        axis = array.shape.index(self.tokens, 1)
        turned = {1: (0, 2, 1, 3), 2: (0, 1, 2, 3), 3: (0, 1, 3, 2)}[axis]
        return array.transpose(turned).astype(np.float64)

    def _attention(
        self,
        q: NDArray[np.float64],
        k: NDArray[np.float64],
        v: Array,
        visible: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        match = self._match
        k, wide = (
            np.repeat(part, self._heads // part.shape[1], axis=1)
            for part in (k, v.astype(np.float64))
        )
        scores = match.scale * np.einsum("bhsd,bhtd->bhst", q, k)
        if match.softcap:
            scores = match.softcap * np.tanh(scores / match.softcap)
        weights = np.where(visible, np.exp(scores), 0)
        total = weights.sum(-1, keepdims=True)
        if match.head_sink is not None:
            held = constant(match.head_sink)
            sink = stand_in(match.head_sink) if held is None else held
            total = total + np.exp(sink.astype(np.float64)).reshape(1, -1, 1, 1)
        result: NDArray[np.float64] = np.einsum("bhst,bhtd->bhsd", weights / total, wide)
        return result

    def window_constants(self) -> Iterator[ir.Value]:
        """Whole numbers from the way to the result that might be a window."""
        seen: set[ir.Value] = {r.source for r in (self._sources.q, self._sources.k)}
        seen.add(self._sources.v.source)
        pending = [self._match.y]
        while pending:
            value = pending.pop()
            if value in seen:
                continue
            seen.add(value)
            node = value.producer()
            if node is not None and node.op_type != "Constant":
                pending.extend(v for v in inputs_of(node) if v is not None)
                continue
            held = number(value)
            if held is not None and self.tokens <= held <= _LONGEST and held == int(held):
                yield value


def _heads_dim(region: Region) -> tuple[int, int]:
    source = region.source
    heads, dim = dimension(source, 2 if region.transposed else 1), dimension(source, 3)
    assert heads is not None and dim is not None
    return heads, dim


def _window(visible: NDArray[np.bool_]) -> int:
    """The window of a causal [S,S], 0 for none."""
    tokens = np.arange(len(visible))
    distance = tokens[:, None] - tokens[None, :]
    if (visible & (distance < 0)).any():
        raise _Unlike("its tokens see those after them: only decoders can be exported")
    counts = visible.sum(-1)
    window = int(counts.max())
    if np.array_equal(visible, (distance >= 0) & (distance < window)):
        return 0 if window == len(visible) else window
    raise _Unlike("its mask is neither causal nor a window of tokens back")


def _wider_window(subject: _Subject) -> int:
    """The window beyond the tokens of a probe: a number in the graph that, replaced by a smaller
    one, becomes a window of that many tokens."""
    for value in subject.window_constants():
        held = constant(value)
        assert held is not None
        found = []
        for tried in _TRIED:
            try:
                small = np.full_like(held, tried)
                found.append(_window(subject.visible({value: small})) - tried)
            except (ProbeError, _Unlike):
                break
        if len(found) == len(_TRIED) and len(set(found)) == 1:
            return int(held.reshape(-1)[0]) + found[0]
    return 0


def _miss(match: AttentionMatch, reason: str) -> Miss:
    return Miss(pattern="attention", node=describe(match.y), reason=reason, depth=6)
