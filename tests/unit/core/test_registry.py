"""A registry against a folder written by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ctx_export.core.registry import Registry

MODULE = "class Entry:\n    name = {name!r}\n\nENTRY = Entry()\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two entries, a base and a private module, none of them imported yet."""
    folder = tmp_path / "folder_of_entries"
    folder.mkdir()
    for stem in ("__init__", "base", "_helpers"):
        (folder / f"{stem}.py").write_text("")
    (folder / "one.py").write_text(MODULE.format(name="one"))
    (folder / "two_words.py").write_text(MODULE.format(name="two-words"))
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def registry(folder: Path) -> Registry:
    return Registry(folder.name, [str(folder)], "ENTRY")


def test_names_are_the_modules_and_import_nothing(package):
    assert registry(package).names == ("one", "two-words")
    assert not any(name.startswith(package.name) for name in sys.modules)


def test_entries_are_the_modules_objects_by_name(package):
    entries = registry(package).entries
    assert {name: entry.name for name, entry in entries.items()} == {
        "one": "one",
        "two-words": "two-words",
    }


def test_an_entry_named_unlike_its_module_is_an_error(package):
    (package / "one.py").write_text(MODULE.format(name="won"))
    with pytest.raises(ValueError, match="'won', expected 'one'"):
        _ = registry(package).entries
