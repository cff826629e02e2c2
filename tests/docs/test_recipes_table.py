"""docs/recipes.md against the recipes that it is made from."""

from __future__ import annotations

from tools.docs.recipes_table import DEMO, PAGE, page, recipe_files


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run python -m tools.docs.recipes_table --write"
    )


def test_every_recipe_has_a_row():
    public = [path for path in recipe_files() if path.parent.name != DEMO]
    text = page()
    assert text.count("\n| [") == len(public)
    assert all(
        f"[{path.stem}](../recipes/{path.parent.name}/{path.name})" in text for path in public
    )
