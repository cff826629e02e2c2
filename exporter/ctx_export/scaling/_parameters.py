"""From untyped keys and values (config.json, YAML, command line) to a method's parameter object.

Every message names the key, the value and what it should be. A value of null means "not given".
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any

from ctx_export.core.errors import UserError


def number(value: Any, what: str, *, minimum: float | None = None) -> float:
    """`value` as a finite float; above 0, or at least `minimum` where one is given."""
    bound = "above 0" if minimum is None else f"at least {minimum:g}"
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or (value <= 0 if minimum is None else value < minimum):
        raise UserError(f"{what} is {value!r}: it must be a finite number {bound}")
    return float(value)


def closest(name: str, known: typing.Iterable[str]) -> str:
    """`, did you mean …?` where a known name is near, else nothing."""
    near = get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]}?" if near else ""


def check(owner: type, values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Those of `values` that are given, converted to the types of `owner`'s fields.

    `owner` is a method's parameter class; `where` opens the messages, such as "scaling" or
    "rope_scaling". Raises UserError for an unknown key or a value of the wrong type.
    """
    hints = typing.get_type_hints(owner)
    converted = {}
    for key, value in values.items():
        if key not in hints:
            known = ", ".join(hints) or "none"
            near = closest(key, hints)
            raise UserError(f"{where}.{key} is unknown{near} (keys of this method: {known})")
        if value is not None:
            converted[key] = _converter(hints[key])(value, f"{where}.{key}")
    return converted


def build(owner: type, values: Mapping[str, Any], *, where: str) -> Any:
    """An instance of `owner` from `values`; raises UserError also for a missing required key."""
    converted = check(owner, values, where=where)
    for entry in fields(owner):
        if (
            entry.name not in converted
            and entry.default is MISSING
            and entry.default_factory is MISSING
        ):
            raise UserError(
                f"{where}.{entry.name} is missing: this method needs it; give it with "
                f"--set scaling.{entry.name}=… or under scaling: in a recipe"
            )
    return owner(**converted)


def _boolean(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{what} is {value!r}: it must be true or false")
    return value


def _non_negative(value: Any, what: str) -> float:
    return number(value, what, minimum=0)


def _numbers(value: Any, what: str) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise UserError(f"{what} is {value!r}: it must be a list of numbers")
    return tuple(number(entry, f"{what}[{index}]") for index, entry in enumerate(value))


def _converter(hint: Any) -> Callable[[Any, str], Any]:
    """The conversion for a field's annotation: float, bool or tuple[float, ...], or None."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(option for option in options if option is not types.NoneType)
    if kind is bool:
        return _boolean
    return _non_negative if kind is float else _numbers
