"""What a user asks of a path, beyond what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.recipe import Recipe, build_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`scaling` holds a recipe's fields by name, `file` and `settings` its other sources; empty,
    no method is asked about. `runtimes` are those that count, all where empty."""

    scaling: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    settings: Sequence[str] = ()
    runtimes: Sequence[str] = ()
    reference: Path | None = None  # of an ONNX file: the checkpoint it was made from

    def __post_init__(self) -> None:
        from ctx_export.inspection import runtimes

        for name in self.runtimes:
            if name not in runtimes.names():
                raise UserError(
                    f"runtime {name!r} is not known: choose one of {', '.join(runtimes.names())}"
                )

    @property
    def about_a_method(self) -> bool:
        """Whether a change is asked about."""
        return bool(set(self.scaling) - {"original_context"} or self.settings or self.file)

    def recipe(self, model: Path) -> Recipe:
        """The change as a recipe on `model`."""
        given = {**self.scaling, "model": str(model)}
        return build_recipe(given, file=self.file, settings=self.settings)

    def refuse_any(self, package: Path) -> None:
        """A package has its method baked in and no config.json: nothing can be asked of it."""
        asked = {
            "a method": self.about_a_method,
            "--runtime": bool(self.runtimes),
            "--reference": self.reference is not None,
        }
        for name, given in asked.items():
            if given:
                raise UserError(
                    f"{package} is a package, whose method is baked in: leave {name} out, or name "
                    "the checkpoint it was made from"
                )
