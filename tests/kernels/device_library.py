"""The plugin library that tests marked gpu run."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / "exporter" / "ctx_export" / "lib" / "libctx_plugins.so"


def device_library(given: str | None) -> Path:
    """`given` by --plugin-library, else the one that `make setup` installs."""
    library = INSTALLED if given is None else Path(given)
    if not library.is_file():
        pytest.fail(f"there is no {library}: make setup builds one, or name it: --plugin-library")
    return library
