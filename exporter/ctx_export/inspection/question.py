"""What a user asks of a path, beyond what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.recipe import Recipe, build_recipe

METHOD, RUNTIME, REFERENCE = "--method and its options", "--runtime", "--reference"


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
        from ctx_export.inspection.runtimes import check_names

        check_names(self.runtimes)

    @property
    def about_a_method(self) -> bool:
        """Whether a change is asked about."""
        return bool(set(self.scaling) - {"original_context"} or self.settings or self.file)

    def recipe(self, model: Path) -> Recipe:
        """The change as a recipe on `model`."""
        given = {**self.scaling, "model": str(model)}
        return build_recipe(given, file=self.file, settings=self.settings)

    def refuse(self, path: Path, reasons: Mapping[str, str]) -> None:
        """Raise UserError where an option was given that has no meaning for `path`: METHOD,
        RUNTIME or REFERENCE, with the reason."""
        asked = {
            METHOD: self.about_a_method,
            RUNTIME: bool(self.runtimes),
            REFERENCE: self.reference is not None,
        }
        for name, reason in reasons.items():
            if asked[name]:
                raise UserError(f"{path} {reason}: leave {name} out")
