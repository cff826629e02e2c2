"""How much memory is free, so that a comparison that cannot fit is refused before it starts."""

from __future__ import annotations

from pathlib import Path


def available_bytes() -> int | None:
    """Memory that can be taken without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def gibibytes(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.1f} GiB"
