"""Scaling methods, one module each; this folder's contents are the choices of `--method`.

A new method is a new module with a `METHOD`, named like it, and its test: nothing else lists it.
Nothing is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ctx_export.core.errors import UserError
from ctx_export.core.registry import Registry

if TYPE_CHECKING:
    from ctx_export.scaling.base import Method, Resolved, RotaryShape

_REGISTRY: Registry[Method] = Registry(__name__, __path__, "METHOD")


def names() -> tuple[str, ...]:
    """Names of all methods, sorted, read from the folder without importing any of them."""
    return _REGISTRY.names


def methods() -> dict[str, Method]:
    """Every method by its name."""
    return _REGISTRY.entries


def find(name: str) -> Method:
    """The method called `name` or by that alias; raises UserError that lists the names."""
    wanted = str(name).strip().lower().replace("_", "-")
    for method in methods().values():
        if wanted in (method.name, *method.aliases):
            return method
    from ctx_export import cache
    from ctx_export.scaling._parameters import closest

    choices = ", ".join((*names(), *cache.names()))

    every = [n for m in methods().values() for n in (m.name, *m.aliases)]
    every += [n for p in cache.policies().values() for n in (p.name, *p.aliases)]
    raise UserError(f"unknown method {name!r}{closest(wanted, every)} (choose one of {choices})")


def resolve(
    name: str,
    shape: RotaryShape,
    target: int,
    factor: float | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    where: str = "scaling",
) -> Resolved:
    """Decide everything about a method at `target` tokens and compute its table.

    The factor is `factor`, else `parameters["factor"]`, else the method's own default (T / L for
    most). `parameters` has Hugging Face's keys; `where` names their origin in messages. Raises
    UserError for an unknown key, a value of the wrong type or settings that cannot work.
    """
    from ctx_export.scaling._parameters import build, number
    from ctx_export.scaling.base import Request, Resolved

    method = find(name)
    values = {key: value for key, value in (parameters or {}).items() if value is not None}
    inner = values.pop("factor", None)
    what = "factor" if factor is not None else f"{where}.factor"
    given = factor if factor is not None else inner
    if not method.uses_factor and given is not None:
        raise UserError(f"{what} is {given!r}: method {method.name} takes no factor; leave it out")
    built = build(method.parameters, values, where=where)
    if not method.uses_factor:
        decided = 1.0
    elif given is not None:
        decided = number(given, what, minimum=1)
    else:
        decided = method.default_factor(shape, target)
    request = Request(shape=shape, target=target, factor=decided, parameters=built)
    try:
        table = method.table(request)
        by_length = method.length_table(request) if method.length_table else None
    except OverflowError:
        raise UserError(
            f"factor {decided:g} at rope_theta {shape.theta:g} overflows: choose a smaller factor"
        ) from None
    return Resolved(
        method=method, factor=decided, parameters=built, table=table, length_table=by_length
    )
