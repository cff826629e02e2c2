"""transformers' frequency tables of a package's method, at any rope length."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.manifest import Manifest
from ctx_export.core.rope_settings import WHOLE
from ctx_export.scaling._length_table import LengthTable
from ctx_export.validate.rope_parameters import Scaling
from ctx_export.validate.torch_reference import (
    HuggingFaceRope,
    has_kinds,
    hugging_face_rope,
    main_rope,
    own_rotary,
)

Floats = NDArray[np.float32]
# inv_freq [F] in radians per token and the multiplier.
Table = tuple[Floats, float]


def length_table(manifest: Manifest) -> LengthTable | None:
    """A package's frequencies as a function of the rope length; None where they are constant."""
    raw = manifest.scaling.get("length_table")
    return None if raw is None else LengthTable.from_json(raw)


def package_table(manifest: Manifest) -> Callable[[int], Table]:
    """The package's table at a rope length: float32 numbers, which are the definition."""
    by_length = length_table(manifest)
    if by_length is None:
        held = np.asarray(manifest.scaling["inv_freq"], np.float32)
        return lambda length: (held, float(manifest.scaling["multiplier"]))

    def at(length: int) -> Table:
        inv_freq, multiplier = by_length.at(length)
        return inv_freq.astype(np.float32), multiplier

    return at


def checked_lengths(manifest: Manifest) -> tuple[int, ...]:
    """Rope lengths at which the package's table is compared: around its switch and at the last."""
    by_length = length_table(manifest)
    scaling = Scaling.of(manifest)
    if by_length is None:
        return ()
    switch = round(by_length.threshold)
    near = {1, switch - 1, switch, switch + 1, 2 * switch, scaling.target}
    return tuple(sorted(n for n in near if 1 <= n <= max(scaling.target, switch + 1)))


def rope_at(scaling: Scaling, config: Any, length: int) -> HuggingFaceRope:
    """The method in transformers' words at a rope length."""
    return hugging_face_rope(replace(scaling, target=length), config)


def transformers_table(kind: type, config: Any, scaling: Scaling, length: int) -> Table:
    """What transformers' rotary module `kind` turns by in a forward of `length` tokens."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rotary = own_rotary(kind, config, rope_at(scaling, config, length))
    if main_rope(rotary.config)["rope_type"] != "dynamic":
        return held_table(rotary, WHOLE if has_kinds(config) else "")
    flat = copy.copy(rotary.config)
    flat.rope_parameters = main_rope(rotary.config)
    table, multiplier = ROPE_INIT_FUNCTIONS["dynamic"](flat, seq_len=length)
    return table.numpy().copy(), float(multiplier)


def held_table(rotary: Any, kind: str) -> Table:
    """A rotary module's table, of one kind of layers where it has several."""
    prefix = f"{kind}_" if kind else ""
    inv_freq = getattr(rotary, f"{prefix}inv_freq").numpy().copy()
    return inv_freq, float(getattr(rotary, f"{prefix}attention_scaling"))


def own_tables(manifest: Manifest) -> tuple[Table | None, ...]:
    """Per layer the table of its own, None where it has the package's."""
    held = manifest.scaling.get("layers") or [None] * len(manifest.layers)
    return tuple(
        None
        if own is None
        else (np.asarray(own["inv_freq"], np.float32), float(own["multiplier"]))
        for own in held
    )
