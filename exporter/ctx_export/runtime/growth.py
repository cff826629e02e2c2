"""Growing all caches of a model, or none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Resizable(Protocol):
    """A cache tensor; a failed `resize` leaves it as it was."""

    @property
    def slots(self) -> int: ...

    def resize(self, slots: int) -> None: ...


def grow_all(tensors: Iterable[Resizable], slots: int) -> None:
    """Give every tensor at least `slots` slots. What a `resize` raises is raised again, with all
    tensors as they were: a model takes one number of slots for all its layers.

    One tensor at a time, so that old and new memory exist side by side for one tensor only.
    """
    grown: list[tuple[Resizable, int]] = []
    try:
        for tensor in tensors:
            before = tensor.slots
            if before < slots:
                tensor.resize(slots)
                grown.append((tensor, before))
    except BaseException:
        # Backwards, each one shrinks into the memory that its own growth gave back.
        for tensor, before in reversed(grown):
            tensor.resize(before)
        raise
