"""The installed plugin library, as `make setup` builds it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    library = ROOT / "exporter" / "ctx_export" / "lib" / "libctx_plugins.so"
    if not library.exists():
        pytest.skip(f"{library} is not built: make setup (needs a CUDA compiler)")
    return library
