"""What runtimes make of a config.json's position settings: one runtime per module."""

from __future__ import annotations

from collections.abc import Sequence

from ctx_export.core.errors import UserError
from ctx_export.core.registry import Registry
from ctx_export.inspection.runtimes.base import Finding, Runtime
from ctx_export.inspection.scaling_settings import ScalingSettings

_REGISTRY: Registry[Runtime] = Registry(__name__, __path__, "RUNTIME")


def names() -> tuple[str, ...]:
    """Names of all runtimes, sorted."""
    return _REGISTRY.names


def runtimes() -> dict[str, Runtime]:
    """Every runtime by its name."""
    return _REGISTRY.entries


def check_names(wanted: Sequence[str]) -> None:
    """Raise UserError for a name that is no runtime's."""
    for name in wanted:
        if name not in names():
            raise UserError(f"runtime {name!r} is not known: choose one of {', '.join(names())}")


def judge(settings: ScalingSettings, wanted: Sequence[str] = ()) -> tuple[Finding, ...]:
    """What the runtimes `wanted` (all where empty) make of `settings`."""
    check_names(wanted)
    chosen = tuple(name for name in names() if not wanted or name in wanted)
    return tuple(found for name in chosen for found in runtimes()[name].judge(settings))
