"""Cache policies, one module each; a new one is a new module with a `POLICY` and its test.

Without a policy a package keeps every token up to its baked maximum. Nothing is imported before
it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctx_export.core.registry import Registry

if TYPE_CHECKING:
    from ctx_export.cache.base import Policy

_REGISTRY: Registry[Policy] = Registry(__name__, __path__, "POLICY")


def names() -> tuple[str, ...]:
    """Names of all policies, sorted, read from the folder without importing any of them."""
    return _REGISTRY.names


def policies() -> dict[str, Policy]:
    """Every policy by its name."""
    return _REGISTRY.entries


def find(name: str) -> Policy | None:
    """The policy called `name` or by that alias, or None."""
    wanted = str(name).strip().lower().replace("_", "-")
    for policy in policies().values():
        if wanted in (policy.name, *policy.aliases):
            return policy
    return None
