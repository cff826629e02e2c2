"""Named GPUs with their memory and its bandwidth, and budgets of memory that a plan has to fit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError

DATA = Path(__file__).with_name("devices.json")
ALL = "all"
_UNITS = {
    "": 1,
    "b": 1,
    **{f"{unit}b": 1000**power for power, unit in enumerate("kmgt", 1)},
    **{f"{unit}ib": 1024**power for power, unit in enumerate("kmgt", 1)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU as its maker specifies it; what is not known is None."""

    name: str
    aliases: tuple[str, ...]
    memory_bytes: int  # nominal
    shared: bool  # with the CPU and all that runs there
    bandwidth: float | None  # bytes a second, of its memory
    compute_capability: str
    source: str  # URL of the specification


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Memory to fit into; `bandwidth` None where nobody stated one."""

    name: str
    memory_bytes: int
    bandwidth: float | None = None
    shared: bool = False

    def usable(self, reserve: float) -> int:
        """What is left where the share `reserve` is kept free."""
        return int(self.memory_bytes * (1 - reserve))

    def milliseconds(self, count: int) -> float | None:
        """The least time in which `count` bytes can pass, None where no bandwidth is known."""
        return None if self.bandwidth is None else 1e3 * count / self.bandwidth


@cache
def devices() -> tuple[Device, ...]:
    """All that are known, from small to large families as the data file lists them."""
    entries = json.loads(DATA.read_text(encoding="utf-8"))["devices"]
    return tuple(Device(**{**entry, "aliases": tuple(entry["aliases"])}) for entry in entries)


def find_devices(name: str) -> tuple[Device, ...]:
    """The device of that name or alias, or all of them; raises UserError that lists the names."""
    wanted = _plain(name)
    if wanted == ALL:
        return devices()
    for device in devices():
        if wanted in map(_plain, (device.name, *device.aliases)):
            return (device,)
    from ctx_export.scaling._parameters import closest

    every = [_plain(word) for device in devices() for word in (device.name, *device.aliases)]
    known = ", ".join((ALL, *(device.name for device in devices())))
    raise UserError(
        f"unknown device {name!r}{closest(wanted, every)} (give --memory, or one of {known})"
    )


def budgets(memories: tuple[str, ...], names: tuple[str, ...]) -> tuple[Budget, ...]:
    """What `--memory` and `--device` ask for, each once, in their order."""
    asked = [Budget(name=text, memory_bytes=parse_memory(text)) for text in memories]
    for device in (device for name in names for device in find_devices(name)):
        asked.append(
            Budget(
                name=device.name,
                memory_bytes=device.memory_bytes,
                bandwidth=device.bandwidth,
                shared=device.shared,
            )
        )
    return tuple(dict.fromkeys(asked))


def parse_memory(text: str) -> int:
    """Bytes that `8GB` (powers of 1000), `8GiB` (of 1024) or a number of bytes names; raises
    UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match and match[2] in _UNITS:
        size = int(Fraction(match[1]) * _UNITS[match[2]])
        if 1 <= size < 2**63:
            return size
    raise UserError(f"memory {text!r} is not a size: write for example 8GB, 7.5GiB or 8589934592")


def parse_share(text: str) -> float:
    """The share that `10%` or `0.1` names; raises UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else 1.0
    if share >= 1:
        raise UserError(f"reserve {text!r} is not a share below all: write for example 10% or 0.1")
    return share


def _plain(name: Any) -> str:
    return re.sub(r"[\s_-]+", "-", str(name).strip().lower())
