"""A report's files: JSON, a picture and a page that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from ctx_export.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PACKAGES = ("ctx-export", "onnxruntime", "numpy")


def versions(*more: str) -> dict[str, str]:
    """Versions of what a report was measured with."""
    found = {}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_drawing() -> None:
    """Raises UserError where pictures and pages cannot be made, before any long work."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing, which pictures and pages are made with: pip install "
            "'ctx-export[eval]', or leave -o out"
        ) from None


def make_folder(folder: Path) -> None:
    """The directory of a report, made before any long work; raises UserError where nothing can be
    written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"output {folder} cannot be written: {error.strerror}; choose another directory with "
            "-o"
        ) from None


def save(
    folder: Path,
    name: str,
    values: dict[str, Any],
    draw: Callable[[], Figure],
    page: Callable[[], str],
) -> list[Path]:
    """Write NAME.json, NAME.png and NAME.html into `folder`; returns where they are."""
    make_folder(folder)
    places = [folder / f"{name}.{ending}" for ending in ("json", "png", "html")]
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    places[0].write_text(text, encoding="utf-8")
    # No date and no version inside: the same figures give the same file.
    draw().savefig(places[1], dpi=120, metadata={"Software": None})
    places[2].write_text(page(), encoding="utf-8")
    return places


def render(template: str, **values: Any) -> str:
    """A page from evaluation/templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ctx_export.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
