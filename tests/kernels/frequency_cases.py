"""Tables by length and rope lengths that the body's and the kernel's tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ctx_export.scaling import resolve
from ctx_export.scaling._length_table import LengthTable
from ctx_export.scaling.base import RotaryShape

ORIGINAL, TARGET, HEAD_DIM = 4096, 131072, 80
LENGTHS = (1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 2 * ORIGINAL, TARGET, 1 << 33)


def table_of(method: str, parameters: Mapping[str, Any]) -> LengthTable:
    shape = RotaryShape(
        head_dim=HEAD_DIM,
        rotary_dim=HEAD_DIM,
        theta=1e4,
        original_context=ORIGINAL,
        max_position_embeddings=ORIGINAL if method == "dynamic-ntk" else TARGET,
    )
    table = resolve(method, shape, TARGET, parameters=parameters).length_table
    assert table is not None
    return table


def wide_table(threshold: float) -> LengthTable:
    """One pair that switches at `threshold`: multiplier 1 up to there, 2 beyond."""
    row = np.ones(1)
    return LengthTable(
        short_frequencies=row,
        long_frequencies=row / 3,
        ramp=0 * row,
        exponent=0 * row,
        threshold=threshold,
        long_multiplier=2.0,
    )


_FACTORS = {
    "short_factor": np.linspace(1.0, 1.5, HEAD_DIM // 2).tolist(),
    "long_factor": np.geomspace(1.1, 40.0, HEAD_DIM // 2).tolist(),
}
TABLES: dict[str, Callable[[], LengthTable]] = {
    "dynamic-ntk": lambda: table_of("dynamic-ntk", {}),
    "dynamic-ntk-4": lambda: table_of("dynamic-ntk", {"factor": 4.0}),
    "dynamic-yarn": lambda: table_of("dynamic-yarn", {}),
    "dynamic-yarn-mscales": lambda: table_of(
        "dynamic-yarn", {"mscale": 0.707, "mscale_all_dim": 1.3}
    ),
    "longrope": lambda: table_of("longrope", _FACTORS),
    "longrope-mscales": lambda: table_of(
        "longrope", {**_FACTORS, "short_mscale": 1.05, "long_mscale": 1.25}
    ),
}
