"""Rotary embedding, whatever operators it is written with: its matrix at every position is read
off by running it, and must turn pairs of dims."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ctx_export.patterns.alike import Alike
from ctx_export.patterns.graph_view import GraphView
from ctx_export.patterns.match import Miss, describe, dimension
from ctx_export.patterns.probe import Extent, ProbeError, run
from ctx_export.patterns.region import Region, trace_back

HEADS_FIRST = [0, 2, 1, 3]  # [B,S,H,D] to [B,H,S,D]
_TOKENS = 11  # positions that are looked at; no head has so few dims or is one of so many heads
_LARGEST = 1 << 22  # bytes of vectors that are rotated at once
_EXACT = 1e-4  # of an angle in radians, and of a multiplier

Matrices = NDArray[np.float32]  # [S,D,D]: y = M[s] x


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryTable:
    """Angles per token `inv_freq` [F] in radians, and the length that rotated vectors gain."""

    inv_freq: NDArray[np.float64]
    multiplier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryMatch:
    """A rotated value: the tensor before rotation [B,H,S,D] and how it is rotated.

    `transposed`: the source is [B,S,H,D]. A `rotary_dim` of 0: it is not rotated at all. `table`
    is what the graph itself rotates with; None where its numbers are not in the graph. `groups`:
    how often every head of the source is repeated.
    """

    source: ir.Value
    rotary_dim: int
    interleaved: bool
    transposed: bool = False
    table: RotaryTable | None = None
    groups: int = 1


def match_rotary(
    view: GraphView, value: ir.Value, alike: Alike | None = None
) -> RotaryMatch | Miss:
    """Match `value`, what an attention's scores are made of, as a rotary embedding of some tensor.

    `value` is [B,H,S,D], [B,S,H,D] or [B,H,D,S]: which of them its shape tells. Of rotations that
    are `alike` one is run.
    """
    region = trace_back(view, value)
    if isinstance(region, Miss):
        return region
    alike = alike or Alike(view)
    found = alike.once((value,), (region.source,), lambda: _match(view, value, region))
    return found if isinstance(found, Miss) else replace(found, source=region.source)


def _match(view: GraphView, value: ir.Value, region: Region) -> RotaryMatch | Miss:
    try:
        matrices, groups, stand_ins = _matrices(view, value, region)
    except ProbeError as error:
        return _miss(value, 2, f"it cannot be run by itself: {error}")
    if isinstance(matrices, str):
        return _miss(value, 3, matrices)
    found = _pairs(matrices)
    if isinstance(found, str):
        return _miss(value, 4, found)
    rotary_dim, interleaved = found
    table = _table(matrices, rotary_dim, interleaved)
    if isinstance(table, str):
        return _miss(value, 5, table)
    return RotaryMatch(
        source=region.source,
        rotary_dim=rotary_dim,
        interleaved=interleaved,
        transposed=region.transposed,
        table=None if stand_ins or not rotary_dim else table,
        groups=groups,
    )


def _matrices(
    view: GraphView, value: ir.Value, region: Region
) -> tuple[Matrices | str, int, bool]:
    """What a region multiplies every token's vector by, and how often it repeats a head.

    Sequence i holds the i-th unit vector, in head h times h + 1.
    """
    dim = dimension(region.source, 3)
    heads = dimension(region.source, 2 if region.transposed else 1)
    assert dim is not None and heads is not None
    tokens = _TOKENS
    while tokens in (heads, dim) or tokens == dim * heads:
        tokens += 1
    scales = np.arange(1, heads + 1, dtype=np.float32)
    at_once = max(1, _LARGEST // (4 * heads * tokens * dim))
    parts, repeated, stand_ins = [], 1, False
    for start in range(0, dim, at_once):
        basis = np.eye(dim, dtype=np.float32)[start : start + at_once, None, None]
        given = basis * np.ones((1, 1, tokens, 1), np.float32) * scales[None, :, None, None]
        fed = given.swapaxes(1, 2) if region.transposed else given
        extent = Extent(batch=len(basis), tokens=tokens)
        probe = run(view, [value], {region.source: np.ascontiguousarray(fed)}, extent)
        stand_ins = probe.stand_ins
        result = _heads_first(probe.values[0], (len(basis), tokens, dim))
        if result is None:
            found = list(probe.values[0].shape)
            return f"of {list(given.shape)} it makes {found}", 1, stand_ins
        repeated = result.shape[1] // heads
        order = np.repeat(scales, max(repeated, 1))[None, :, None, None]
        if order.size != result.shape[1] or not np.allclose(
            result, result[:, :1] * order, rtol=1e-5, atol=1e-6
        ):
            return "its heads are not the source's, each repeated in place", 1, stand_ins
        parts.append(result[:, 0])  # [i,S,D]
    return np.concatenate(parts).transpose(1, 2, 0), repeated, stand_ins


def _heads_first(result: NDArray[np.float32], size: tuple[int, int, int]) -> Matrices | None:
    """`result` as [B,H,S,D] of the `size` B, S, D."""
    count, tokens, dim = size
    if result.ndim != 4 or result.shape[0] != count or result.shape[1:].count(tokens) != 1:
        return None
    axis = result.shape.index(tokens, 1)
    turned = {1: (0, 2, 1, 3), 2: (0, 1, 2, 3), 3: (0, 1, 3, 2)}[axis]
    heads_first = result.transpose(turned)
    return heads_first if heads_first.shape[3] == dim else None


def _pairs(matrices: Matrices) -> tuple[int, bool] | str:
    """How many leading dims are turned in pairs, and whether those are neighbours."""
    off = matrices.copy()
    dims = np.arange(matrices.shape[1])
    off[:, dims, dims] = 0
    touched = (off != 0).any(0)  # [D,D]: row j takes from column i
    rotary_dim = int((touched.any(0) | touched.any(1)).sum())
    kept = matrices[:, dims[rotary_dim:], dims[rotary_dim:]]
    if rotary_dim % 2 or touched[rotary_dim:].any() or touched[:, rotary_dim:].any():
        return f"it turns {rotary_dim} dims that are not the first ones of a head"
    if not np.array_equal(kept, np.ones_like(kept)):
        return f"the dims behind the {rotary_dim} that turn are changed"
    rows = np.arange(rotary_dim)
    layouts = {
        False: (rows + rotary_dim // 2) % max(rotary_dim, 1),
        True: rows ^ 1,
    }
    for interleaved, partner in layouts.items():
        expected = np.zeros_like(touched)
        expected[rows, partner] = True
        if np.array_equal(touched, expected):
            return rotary_dim, interleaved
    row = int(np.argmax(touched.sum(1) != 1)) if (touched.sum(1) != 1)[:rotary_dim].any() else 0
    mixed = ", ".join(map(str, np.flatnonzero(touched[row])))
    return (
        f"dim {row} of a head turns with dim {mixed}: pairs are (i, i + {rotary_dim // 2}) or "
        "(2i, 2i + 1)"
    )


def _table(matrices: Matrices, rotary_dim: int, interleaved: bool) -> RotaryTable | str:
    """The angles per token and the multiplier of matrices [S,D,D] that turn pairs."""
    if not rotary_dim:
        return RotaryTable(inv_freq=np.zeros(0), multiplier=1.0)
    pair = np.arange(rotary_dim // 2)
    first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + rotary_dim // 2)
    exact = matrices.astype(np.float64)
    cos, sin = exact[:, first, first], exact[:, second, first]  # [S,F]
    if not np.allclose(cos, exact[:, second, second], atol=_EXACT) or not np.allclose(
        sin, -exact[:, first, second], atol=_EXACT
    ):
        return "the two dims of a pair are not turned by one angle"
    length = np.hypot(cos, sin)
    multiplier = float(length[0].mean())
    if multiplier <= 0 or not np.allclose(length, multiplier, rtol=1e-3):
        return f"rotated vectors change their length by {length.min():.6g} to {length.max():.6g}"
    angles = np.unwrap(np.arctan2(sin, cos), axis=0)
    steps = np.arange(len(angles), dtype=np.float64)
    inv_freq = (steps @ angles) / (steps @ steps)
    if not np.allclose(angles, steps[:, None] * inv_freq, atol=100 * _EXACT):
        return "its angles do not grow in proportion to the position, from 0 at the first token"
    if (inv_freq < 0).any():
        return "it turns backwards, by a negative angle a token"
    return RotaryTable(inv_freq=inv_freq, multiplier=multiplier)


def _miss(value: ir.Value, depth: int, reason: str) -> Miss:
    return Miss(pattern="rotary embedding", node=describe(value), reason=reason, depth=depth)
