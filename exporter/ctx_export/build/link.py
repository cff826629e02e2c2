"""Weight files in a package: the source's own, hard-linked, under names nothing else takes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DATA_NAME = "model.onnx.data"  # what the package writes itself
# Of files that a package writes: a link of such a name would be written through, into the source.
_TAKEN_SUFFIXES = frozenset(
    {".onnx", ".engine", ".so", ".json", ".md", ".model", ".txt", ".jinja", ".yaml", ".pbtxt"}
)
_ACROSS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedFile:
    """A weight file in the package."""

    name: str
    copied: bool


def link_files(
    files: Iterable[Path], directory: Path, taken: Iterable[str] = ()
) -> dict[Path, LinkedFile]:
    """Link every one of `files` into `directory`, or copy it where a link cannot be made.

    They keep their names, except those of `taken`, such as the package's own files have, and the
    second of two that are equal.
    """
    done: dict[Path, LinkedFile] = {}
    used = set(taken)
    for file in sorted(files):
        name = _free_name(file.name, used)
        used.add(name)
        done[file] = LinkedFile(name=name, copied=_link(file, directory / name))
    return done


def _free_name(name: str, taken: set[str]) -> str:
    safe = f"source.{name}.data" if Path(name).suffix.lower() in _TAKEN_SUFFIXES else name
    number, free = 1, safe
    while free in taken:
        free = f"source{number}.{safe}"
        number += 1
    return free


def _link(file: Path, target: Path) -> bool:
    """Whether the file had to be copied."""
    try:
        os.link(file.resolve(), target)
        return False
    except OSError as error:
        if error.errno not in _ACROSS:
            raise
        shutil.copyfile(file, target)
        return True
