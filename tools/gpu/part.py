"""A part of the measurements, and what its cases draw their tensors from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tools.gpu.compare import Bench

if TYPE_CHECKING:
    from torch import Tensor

SINKS, WINDOW = 4, 1020
QUERY_HEADS, KV_HEADS = 32, 8
OURS = "ours"


class Case(Protocol):
    """One problem and the sides that are compared on it."""

    @property
    def label(self) -> str: ...

    @property
    def sides(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Cases in the order of their importance: time may run out. `quick`: the few of a quick run.

    `weight` is its share of the time beside the other parts' weights.
    """

    name: str
    title: str
    weight: float
    cases: Sequence[Any]
    quick: Sequence[Any]
    run: Callable[[Bench, Sequence[Any]], None]

    def chosen(self, quick: bool) -> Sequence[Any]:
        return self.quick if quick else self.cases

    def planned(self, quick: bool) -> list[tuple[str, str]]:
        """(case, side) of every row that a run should give."""
        return [(case.label, side) for case in self.chosen(quick) for side in case.sides]


class Draw:
    """Random tensors of a bench's device and precision, the same in every run."""

    def __init__(self, bench: Bench, seed: int = 0) -> None:
        import torch

        self._torch: Any = torch
        self._device = bench.device
        self._dtype = getattr(torch, bench.dtype)
        self._generator = torch.Generator(bench.device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        found: Tensor = self._torch.randn(
            shape, generator=self._generator, device=self._device, dtype=self._dtype
        )
        return found

    def poisoned(self, *shape: int) -> Tensor:
        """Memory for an output: NaN, so that what is not written is noticed."""
        found: Tensor = self._torch.full(
            shape, float("nan"), device=self._device, dtype=self._dtype
        )
        return found

    def integers(self, values: Sequence[Any]) -> Tensor:
        found: Tensor = self._torch.tensor(values, device=self._device, dtype=self._torch.int64)
        return found


def size_text(tokens: int) -> str:
    """128k, 2^33, 100000: short where it is exact."""
    if tokens >= 1 << 30 and tokens & (tokens - 1) == 0:
        return f"2^{tokens.bit_length() - 1}"
    return f"{tokens >> 10}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
