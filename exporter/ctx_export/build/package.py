"""A package directory that is there whole or not at all: staged beside OUT, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ctx_export.core.errors import UserError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


def check_output(output: Path, *, force: bool) -> None:
    """Raise UserError where OUT exists (unless forced) or cannot be made."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UserError(f"output {output} exists and is not a directory; choose another with -o")
    if output.exists() and not force:
        raise UserError(f"output {output} exists: give --force to replace it, or another -o")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise UserError(f"output {output}: {parent} is not a directory; create it first")
    if not os.access(parent, os.W_OK):
        raise UserError(f"output {output}: {parent} is not writable; choose another with -o")


@contextmanager
def staged(output: Path, *, force: bool) -> Iterator[Path]:
    """A temporary directory beside `output` that becomes it when the block ends without error."""
    check_output(output, force=force)
    parent = output.absolute().parent
    stage = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=parent))
    try:
        yield stage
        stage.chmod(0o755)
        _move(stage, output, force=force)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def _move(stage: Path, output: Path, *, force: bool) -> None:
    if not output.exists():
        os.rename(stage, output)
        return
    if not force:
        raise UserError(f"output {output} appeared meanwhile: another export made it")
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=stage.parent))
    os.rename(output, old / output.name)
    os.rename(stage, output)
    shutil.rmtree(old, ignore_errors=True)


def copy_tokenizer(sources: Iterable[Path], directory: Path) -> None:
    """Copy tokenizer files, each from the first of `sources` that has it."""
    for source in sources:
        for name in _TOKENIZER_FILES:
            if (source / name).is_file() and not (directory / name).exists():
                shutil.copyfile(source / name, directory / name)
