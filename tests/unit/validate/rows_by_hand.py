"""Rows of reports, written by hand."""

from __future__ import annotations

import math

from ctx_export.validate.rows import Row


def row(position: int, last: int | None = None, **changes) -> Row:
    last = position if last is None else last
    values = {
        "compared": last - position + 1,
        "how": "prefill",
        "max_error": 1e-6,
        "mean_error": 1e-7,
        "limit": 1e-3,
        "transformers": 2e-5,
        "own_table": 3e-6,
    }
    return Row(position=position, last=last, **{**values, **changes})


SEVERAL = (
    row(0),
    row(255, max_error=5e-6),
    row(0, 511, max_error=6e-6),
    row(0, how="decode"),
    row(255, how="decode", max_error=2e-3, mean_error=1e-8),
    row(0, 511, how="decode", compared=9),
    row(1023, how="probe", max_error=math.inf, mean_error=math.inf),
    row(1008, 1023, how="probe"),
)
