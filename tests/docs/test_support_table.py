"""README's table of methods against the scaling folder."""

from __future__ import annotations

from pathlib import Path

import ctx_export.scaling
from tools.docs.support_table import README, table, updated


def test_the_readme_holds_the_current_table():
    text = README.read_text(encoding="utf-8")
    assert text == updated(text), "run python -m tools.docs.support_table --write"


def test_every_file_of_the_scaling_folder_is_a_row():
    folder = Path(ctx_export.scaling.__file__).parent
    files = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")} - {"base"}
    rows = [line.split("`")[1] for line in table().splitlines()[2:]]
    assert sorted(rows) == sorted(stem.replace("_", "-") for stem in files)


def test_a_new_row_would_be_noticed():
    text = README.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| `yarn`"))
    without = text.replace(row + "\n", "")
    assert updated(without) == text != without
