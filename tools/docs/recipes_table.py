"""docs/recipes.md: every recipe with its plan and its source.

python -m tools.docs.recipes_table [--write]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ctx_export.cli.inspect_rows import format_bytes
from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.recipe import Recipe, build_recipe
from ctx_export.core.sizes import format_size
from ctx_export.frontends.checkpoint import read_checkpoint
from tools.recipes.published import MODELS, RECIPES, Published, facts_path, published

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
DEMO = "demo"
AS_TRAINED = "as-trained"
ENDLESS = "endless"
_HEAD = """# Recipes

<!-- python -m tools.docs.recipes_table --write -->

`ctx-export --recipe FILE` exports one; each opens with what to expect and where its parameters
come from. The plans below are made from what the publishers' config.json files state, kept in
`recipes/models/` with where each was checked, so no weights were read: none of these models was
exported or evaluated for this page. *KV cache* is the memory of one sequence at full capacity,
*weights* that of all parameters in the precision of the package. *endless* caches are of fixed
size and take a text of any length; *as-trained* means that no scaling is added. What an edge
recipe sums up is a run's memory: the export before it, with PyTorch's check, the calibration of an
8-bit cache and TensorRT's build, takes more.
"""
_DEMO = """
The bundled demo model's recipes, which run anywhere, are in `recipes/demo/`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """One file of `recipes/` with what it plans."""

    path: Path
    comment: str  # the opening comment without its marks, as one line
    recipe: Recipe
    plan: Plan
    facts: Published | None  # None of the demo model, which is here itself

    @property
    def way(self) -> str:
        """The cache policy, else the scaling method, of the plan."""
        method = AS_TRAINED if self.plan.method == "none" else self.plan.method
        return self.recipe.cache or method

    @property
    def length(self) -> str:
        """The longest text, as file names spell it."""
        context = self.plan.max_context
        return ENDLESS if context is None else format_size(context)

    @property
    def source(self) -> str:
        """Where the recipe's parameters come from."""
        return self.comment.partition("Source: ")[2]


def shipped(path: Path) -> Shipped:
    """A recipe of `recipes/` planned from its model's published facts, without the hub."""
    recipe = build_recipe({}, file=path)
    if recipe.model == DEMO:
        from ctx_export import demo

        facts, spec = None, read_checkpoint(demo.path()).spec
    else:
        facts = published(facts_path(recipe.model))
        spec = facts.spec()
    return Shipped(
        path=path,
        comment=_comment(path),
        recipe=recipe,
        plan=make_plan(spec, recipe),
        facts=facts,
    )


def _comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def recipe_files() -> list[Path]:
    """All recipes, in the order of the page."""
    return sorted(RECIPES.glob("*/*.yaml"))


def page() -> str:
    """The whole page: a table for every folder."""
    families = sorted({path.parent.name for path in recipe_files()} - {DEMO})
    count = len(list(MODELS.glob("*.json")))
    told = f"\n{len(recipe_files())} recipes, {count} models.\n"
    return "\n".join((_HEAD + told, *map(_section, families))) + _DEMO


def _section(family: str) -> str:
    rows = [shipped(path) for path in recipe_files() if path.parent.name == family]
    lines = [
        f"## {family}",
        "",
        "| recipe | model | method | context | KV cache | weights | source |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join((*lines, *map(_row, rows))) + "\n"


def _row(entry: Shipped) -> str:
    name, plan, facts = entry.path.stem, entry.plan, entry.facts
    assert facts is not None
    cells = (
        f"[{name}](../recipes/{entry.path.parent.name}/{entry.path.name})",
        entry.recipe.model,
        entry.way,
        entry.length,
        f"{format_bytes(plan.cache_bytes)} {plan.cache_dtype}",
        f"{format_bytes(facts.weight_bytes(plan.precision))} {plan.precision}",
        entry.source,
    )
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--write", is_flag=True, help="Write docs/recipes.md instead of printing.")
def main(write: bool) -> None:
    """Print the page or write it."""
    if write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        click.echo(page(), nl=False)


if __name__ == "__main__":
    main()
