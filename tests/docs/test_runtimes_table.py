"""docs/runtimes.md against the rules that it is made from."""

from __future__ import annotations

from pathlib import Path

from ctx_export.inspection import runtimes
from tools.docs.runtimes_table import PAGE, page


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run python -m tools.docs.runtimes_table --write"
    )


def test_every_runtime_has_a_section_and_every_rule_a_row():
    text = page()
    folder = Path(runtimes.__file__).parent
    files = {path.stem for path in folder.glob("[!_]*.py")} - {"base"}
    assert text.count("\n## ") == len(files)
    rules = sum(len(runtime.rules) for runtime in runtimes.runtimes().values())
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == rules + len(files)
