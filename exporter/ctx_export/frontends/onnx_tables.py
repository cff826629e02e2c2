"""The rotation tables that were recovered from a graph against those that a config stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.rope_settings import RopeSettings
from ctx_export.scaling import resolve
from ctx_export.scaling.base import FrequencyTable

if TYPE_CHECKING:
    from ctx_export.passes.locate import Site
    from ctx_export.patterns.rotary import RotaryTable

# What a recovered frequency or multiplier may differ from the one that a graph was made with,
# relative: its cosines are rounded to the type, its frequencies to float32 by who made it.
RELATIVE = {"fp32": 2e-5, "fp16": 2e-3, "bf16": 2e-2}
_ABSOLUTE = {"fp32": 1e-12, "fp16": 1e-7, "bf16": 1e-12}  # float16 ends at 6e-8
_LEAST_BASE, _MOST_BASE = 10.0, 1e9


def plain_base(table: RotaryTable, precision: str) -> float | None:
    """The base θ with inv_freq = θ^(-2i/d) and multiplier 1, None where no base gives that."""
    count = len(table.inv_freq)
    if count < 2 or not (np.isfinite(table.inv_freq).all() and (table.inv_freq > 0).all()):
        return None
    exponents = np.arange(count) / count
    slope = float(np.sum(exponents * np.log(table.inv_freq)) / np.sum(exponents**2))
    fitted = float(np.exp(-slope))
    if not _LEAST_BASE <= fitted <= _MOST_BASE:
        return None
    for digits in (1, 2, 3, 4, 5, 6, 9):  # the roundest base that explains the table
        base = float(f"{fitted:.{digits - 1}e}")
        if agrees(table, base**-exponents, 1.0, precision):
            return base
    return None


def agrees(
    table: RotaryTable, inv_freq: NDArray[np.floating], multiplier: float, precision: str
) -> bool:
    """Whether a recovered table is `inv_freq` and `multiplier` to the precision's accuracy."""
    limit = RELATIVE[precision]
    if len(table.inv_freq) != len(inv_freq):
        return False
    near = np.abs(table.inv_freq - inv_freq) <= limit * np.abs(inv_freq) + _ABSOLUTE[precision]
    return bool(near.all()) and abs(table.multiplier - multiplier) <= limit * multiplier


def exact_tables(
    sites: Sequence[Site], spec: ModelSpec, config_name: str
) -> tuple[FrequencyTable | None, ...]:
    """What every layer of the graph rotates by, in the exact numbers of the settings of `spec`.

    None for a layer whose table was not recovered: it follows the length, and is left to the
    config. Raises UserError where a layer rotates otherwise than the config says.
    """
    made: dict[str, FrequencyTable] = {}
    found: list[FrequencyTable | None] = []
    for site in sites:
        rope, table = spec.rope_of(site.layer), site.query.table
        if table is None or not rope.rotates or not site.query.rotary_dim:
            found.append(None)
            continue
        choices = _tables(spec, rope)
        exact = [c for c in choices if agrees(table, c.inv_freq, c.multiplier, spec.precision)]
        if not exact:
            raise _disagree(site, spec, choices[0], config_name)
        found.append(made.setdefault(repr((exact[0].inv_freq, exact[0].multiplier)), exact[0]))
    return tuple(found)


def _tables(spec: ModelSpec, rope: RopeSettings) -> list[FrequencyTable]:
    """The tables that a graph of these settings may hold: of a method that follows the length, one
    within the trained context or one at its full length."""
    shape = spec.rotary_shape(rope=rope)
    full = max(spec.max_position_embeddings, shape.original_context)
    made = resolve(rope.method, shape, full, None, rope.parameters, where="rope_scaling")
    if made.length_table is None:
        return [made.table]
    tables = [made.length_table.at(length) for length in (1, full)]
    return [
        FrequencyTable(inv_freq=inv_freq.astype(np.float32), multiplier=m)
        for inv_freq, m in tables
    ]


def _disagree(
    site: Site, spec: ModelSpec, expected: FrequencyTable, config_name: str
) -> UserError:
    rope, table = spec.rope_of(site.layer), site.query.table
    assert table is not None
    kind = "plain rotation" if rope.method == "none" else f"{rope.method} scaling"
    start = f"layer {site.layer} rotates by another table than {config_name} stands for ({kind}): "
    if len(table.inv_freq) != len(expected.inv_freq):
        return UserError(
            f"{start}{2 * len(table.inv_freq)} dims in the file, {2 * len(expected.inv_freq)} by "
            "the config; check partial_rotary_factor there, or give the file's own checkpoint as "
            "--reference"
        )
    base = plain_base(table, spec.precision)
    if base is not None and rope.method != "none" and _near(base, rope.theta):
        return UserError(
            f"{start}the file has a plain table of base {base:g}: the tool that wrote it dropped "
            f"the {rope.method} scaling, and past the trained context the file is wrong; export "
            "it with a tool that keeps it, or export the checkpoint itself"
        )
    return UserError(
        f"{start}{_difference(table, expected)}; give the file's own checkpoint as --reference, "
        "or export the file again"
    )


def _near(base: float, theta: float) -> bool:
    return abs(base - theta) <= 1e-3 * theta


def _difference(table: RotaryTable, expected: FrequencyTable) -> str:
    """The frequency that differs most, or the multiplier."""
    ratio = np.abs(table.inv_freq / np.where(expected.inv_freq == 0, 1, expected.inv_freq) - 1)
    worst = int(np.argmax(ratio))
    if ratio[worst] >= abs(table.multiplier / expected.multiplier - 1):
        return (
            f"frequency {worst} is {table.inv_freq[worst]:.7g} in the file and "
            f"{expected.inv_freq[worst]:.7g} by the config"
        )
    return (
        f"the multiplier is {table.multiplier:.7g} in the file and {expected.multiplier:.7g} by "
        "the config"
    )
