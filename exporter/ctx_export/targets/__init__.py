"""Export targets, one module each; a new target is a new module with a `TARGET` and its test."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ctx_export.core.errors import UserError
from ctx_export.core.registry import Registry

if TYPE_CHECKING:
    from ctx_export.targets.base import Target

AUTO = "auto"
NONE = "none"  # --engine none is the target onnx
_ONNX = "onnx"


_REGISTRY: Registry[Target] = Registry(__name__, __path__, "TARGET")


def names() -> tuple[str, ...]:
    """Names of all targets, sorted, read from the folder without importing any of them."""
    return _REGISTRY.names


def targets() -> dict[str, Target]:
    """Every target by its name."""
    return _REGISTRY.entries


def engine_options() -> tuple[str, ...]:
    """What `--engine` takes."""
    return (AUTO, NONE, *(name for name, target in targets().items() if target.runtime))


def choose(engine: str) -> Target:
    """The target of an `--engine` option: its own name, `none`, or the best one for `auto`.

    Where `auto` can build no engine it takes the ONNX graph alone, with a note that says why.
    Raises UserError for an unknown name and for an engine that this machine cannot build.
    """
    if engine == NONE:
        return targets()[_ONNX]
    if engine == AUTO:
        return _best()
    target = targets().get(engine)
    if target is None or target.runtime is None:
        raise UserError(
            f"unknown engine {engine!r}: choose one of {', '.join(engine_options())} with --engine"
        )
    reason = target.available()
    if reason is not None:
        raise UserError(f"--engine {engine}: {reason}")
    return target


def _best() -> Target:
    reasons: list[str] = []
    for target in sorted(targets().values(), key=lambda t: t.preference, reverse=True):
        reason = target.available()
        if reason is None:
            if target.runtime is None:
                return replace(target, note=f"no engine was built: {'; '.join(reasons)}")
            return target
        reasons.append(reason)
    raise AssertionError("the onnx target is always available")
