"""A folder whose modules each export one named object: the folder's contents are the choices."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cached_property
from typing import Generic, Protocol, TypeVar


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Entry = TypeVar("Entry", bound=_Named)


class Registry(Generic[Entry]):
    """The entries of a package: `attribute` of each module, named like it with hyphens.

    Modules called `base` and those that begin with an underscore are no entries. Nothing is
    imported before `entries` is read, and `names` imports none of them.
    """

    def __init__(self, package: str, path: Iterable[str], attribute: str) -> None:
        self._package = package
        self._path = path
        self._attribute = attribute

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all entries, sorted."""
        stems = (module.name for module in pkgutil.iter_modules(self._path))
        kept = (stem for stem in stems if stem != "base" and not stem.startswith("_"))
        return tuple(sorted(stem.replace("_", "-") for stem in kept))

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every entry by its name; raises ValueError for a module whose entry has another name."""
        found: dict[str, Entry] = {}
        for name in self.names:
            module = importlib.import_module(f"{self._package}.{name.replace('-', '_')}")
            entry: Entry = getattr(module, self._attribute)
            if entry.name != name:
                raise ValueError(
                    f"{module.__name__}.{self._attribute} is named {entry.name!r}, "
                    f"expected {name!r}"
                )
            found[name] = entry
        return found
