"""Text to train the demo on: Python's standard library without what is held out for measuring.

The demo was trained on such text (exporter/ctx_export/demo/make_demo.py), and heldout.txt are
whole files of the same library. The interpreter that runs this may have other versions of those
files, so a file is left out not by its name but by its lines.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ctx_export import demo
from ctx_export.core.errors import UserError

NAME = "demo-train"  # what --text calls it

_CONTENT = 20  # characters that make a line more than punctuation and keywords
_SHARE = 0.05  # of a file's content lines that may be held out too: licences, common imports
_RUN = 4  # content lines in a row that make a passage
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})


class HeldOut:
    """Which texts share passages with a text that is held out."""

    def __init__(self, text: str) -> None:
        lines = content_lines(text)
        self._lines = frozenset(lines)
        self._runs = frozenset(_runs(lines))

    def overlaps(self, text: str) -> bool:
        """Whether `text` has a passage of the held-out text, or 5 % of its lines."""
        lines = content_lines(text)
        if not lines:
            return False
        shared = sum(line in self._lines for line in lines)
        return shared >= _SHARE * len(lines) or any(run in self._runs for run in _runs(lines))


def content_lines(text: str) -> list[str]:
    """The lines that tell one file from another, without their indentation."""
    return [line for line in map(str.strip, text.splitlines()) if len(line) >= _CONTENT]


def _runs(lines: list[str]) -> Iterator[tuple[str, ...]]:
    """Every `_RUN` lines in a row; all of a shorter text."""
    for start in range(max(1, len(lines) - _RUN + 1)):
        yield tuple(lines[start : start + _RUN])


def demo_texts(library: Path | None = None) -> list[str]:
    """ASCII sources of the standard library (or another folder) that are not held out, by name."""
    folder = library or Path(sysconfig.get_path("stdlib"))
    held_out = HeldOut(demo.heldout_text())
    texts = []
    for path in sorted(folder.rglob("*.py")):
        if _NOT_LIBRARY.isdisjoint(path.relative_to(folder).parts):
            text = _ascii(path)
            if content_lines(text) and not held_out.overlaps(text):
                texts.append(text)
    if not texts:
        raise UserError(
            f"text {NAME} finds no sources in {folder}: this Python has no standard library in "
            "files; give --text FILE"
        )
    return texts


def _ascii(path: Path) -> str:
    """The file's text, empty where it is more than ASCII."""
    data = path.read_bytes()
    return data.decode("ascii").replace("\r\n", "\n") if data.isascii() else ""
