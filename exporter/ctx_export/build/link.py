"""Weight files in a package: the source's own, shared, under names nothing else takes."""

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
_FICLONE = 0x40049409
_ACROSS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedFile:
    """A weight file in the package."""

    name: str
    how: str  # cloned, linked, copied


def link_files(
    files: Iterable[Path], directory: Path, taken: Iterable[str] = (), *, hard_links: bool = True
) -> dict[Path, LinkedFile]:
    """Put every one of `files` into `directory`: as a clone that shares its blocks where the file
    system can, else with `hard_links` as one, else as a copy.

    They keep their names, except those of `taken`, such as the package's own files have, and the
    second of two that are equal.
    """
    done: dict[Path, LinkedFile] = {}
    used = set(taken)
    for file in sorted(files):
        name = _free_name(file.name, used)
        used.add(name)
        how = share_file(file, directory / name, hard_links=hard_links)
        done[file] = LinkedFile(name=name, how=how)
    return done


def _free_name(name: str, taken: set[str]) -> str:
    safe = f"source.{name}.data" if Path(name).suffix.lower() in _TAKEN_SUFFIXES else name
    number, free = 1, safe
    while free in taken:
        free = f"source{number}.{safe}"
        number += 1
    return free


def share_file(file: Path, target: Path, *, hard_links: bool = True) -> str:
    """Make `target` the same as `file`, and say how: cloned, linked or copied."""
    file = file.resolve()
    if _clone(file, target):
        return "cloned"
    try:
        if hard_links:
            os.link(file, target)
            return "linked"
    except OSError as error:
        if error.errno not in _ACROSS:
            raise
    shutil.copyfile(file, target)
    return "copied"


def _clone(file: Path, target: Path) -> bool:
    """Make `target` a file of its own that shares the blocks of `file` (ioctl_ficlone(2))."""
    try:
        import fcntl
    except ImportError:
        return False
    with file.open("rb") as source, target.open("xb") as made:
        try:
            fcntl.ioctl(made.fileno(), _FICLONE, source.fileno())
            return True
        except OSError:
            pass
    target.unlink()
    return False
