"""Rotation in float64 as multiplication of complex numbers, for the pairwise reference.

A pair of dims (a, b) at position p becomes (a + ib)·m·e^(i·p·inv_freq); m is the multiplier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# inv_freq [F] in radians per token and the multiplier at a rope length.
Table = Callable[[int], tuple[NDArray[np.float64], float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """What rotation does to a head of `head_dim` dims: its first 2·`count` turn, in pairs
    (2i, 2i+1) where `interleaved`, else (i, i + count); the others stay."""

    head_dim: int
    count: int  # F
    interleaved: bool = False

    def pairs(self, x: Any) -> Any:
        """`x` [...,D] as complex128 [...,D/2]: the pairs that turn, then the others two by two."""
        import torch

        turning, rest = x.double().split([2 * self.count, self.head_dim - 2 * self.count], dim=-1)
        if self.interleaved:
            turning = turning.unflatten(-1, (-1, 2))
        else:
            turning = turning.unflatten(-1, (2, -1)).transpose(-1, -2)
        return torch.view_as_complex(torch.cat([turning, rest.unflatten(-1, (-1, 2))], dim=-2))

    def merged(self, pairs: Any) -> Any:
        """The inverse of `pairs`."""
        import torch

        both = torch.view_as_real(pairs)
        turning, rest = both.split([self.count, self.head_dim // 2 - self.count], dim=-2)
        if not self.interleaved:
            turning = turning.transpose(-1, -2)
        return torch.cat([turning.flatten(-2), rest.flatten(-2)], dim=-1)

    def factors(self, table: tuple[NDArray[np.float64], float], positions: Ints) -> Any:
        """What turns pairs to `positions` [...]: complex128 [...,D/2], 1 for those that stay."""
        import torch

        inv_freq, multiplier = table
        unique, index = np.unique(positions, return_inverse=True)
        angle = torch.from_numpy(unique[:, None] * np.asarray(inv_freq, np.float64))
        turn = torch.polar(torch.full_like(angle, multiplier), angle)
        turn = torch.nn.functional.pad(turn, (0, self.head_dim // 2 - self.count), value=1.0)
        return turn[torch.from_numpy(index.reshape(positions.shape))]

    def rotated(
        self, x: Floats, table: tuple[NDArray[np.float64], float], positions: Ints
    ) -> Floats:
        """`x` [...,P,D] turned to `positions` [P], rounded at the end."""
        import torch

        pairs = self.pairs(torch.from_numpy(x)) * self.factors(table, positions)
        result: Floats = self.merged(pairs).float().numpy()
        return result
