"""README's table of methods against the folders of scaling methods and cache policies."""

from __future__ import annotations

from pathlib import Path

import ctx_export.cache
import ctx_export.scaling
from tools.docs.support_table import README, table, updated


def test_the_readme_holds_the_current_table():
    text = README.read_text(encoding="utf-8")
    assert text == updated(text), "run python -m tools.docs.support_table --write"


def test_every_file_of_the_two_folders_is_a_row():
    folders = [Path(module.__file__).parent for module in (ctx_export.scaling, ctx_export.cache)]
    files = {p.stem for folder in folders for p in folder.glob("[!_]*.py")} - {"base"}
    rows = [line.split("`")[1] for line in table().splitlines()[2:]]
    assert sorted(rows) == sorted(stem.replace("_", "-") for stem in files)


def test_a_new_row_would_be_noticed():
    text = README.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| `yarn`"))
    without = text.replace(row + "\n", "")
    assert updated(without) == text != without
