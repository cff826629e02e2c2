"""docs/evaluation.md against what its commands wrote, and the shape that published tables have."""

from __future__ import annotations

import json
import re

import pytest

from tools.docs.evaluation_tables import DOCS, PAGE, read, updated
from tools.eval.demo import FACTOR, LENGTHS, TUNED, wanted

TEXT = PAGE.read_text(encoding="utf-8")
TRAINED = 256


def test_the_tables_are_those_of_the_reports():
    assert updated(TEXT) == TEXT, "run python -m tools.docs.evaluation_tables --write"


def test_every_file_that_the_page_links_is_there():
    linked = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert linked
    for name in linked:
        assert (DOCS / name).exists(), name


def perplexities() -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for point in read("evaluation/perplexity.json")["points"]:
        found.setdefault(point["subject"], {})[point["length"]] = point["perplexity"]
    return found


def test_the_reports_have_every_method_before_and_after():
    names = {*wanted(), *(f"{name} fine-tuned" for name in TUNED)}
    assert perplexities().keys() == names
    assert all(tuple(sorted(by)) == LENGTHS for by in perplexities().values())
    cells = read("evaluation/needle.json")["cells"]
    assert {cell["subject"] for cell in cells} == names


@pytest.mark.parametrize("length", [n for n in LENGTHS if n > TRAINED])
def test_none_explodes_past_the_trained_length(length):
    """FORMULAS section 5: Llama-2-7B without scaling, 7.87 at 4k and above 100 beyond."""
    found = perplexities()["none"]
    assert found[length] > 3 * found[TRAINED]


def test_without_training_yarn_is_below_linear_up_to_the_stretched_length():
    found = perplexities()
    for length in (n for n in LENGTHS if n <= FACTOR * TRAINED):
        assert found["yarn"][length] < found["linear"][length]


def test_yarn_is_flat_up_to_the_stretched_length_and_breaks_beyond():
    for name in ("yarn", "yarn fine-tuned", "linear fine-tuned"):
        found = perplexities()[name]
        within = [found[n] for n in LENGTHS if TRAINED <= n <= FACTOR * TRAINED]
        beyond = [found[n] for n in LENGTHS if n > FACTOR * TRAINED]
        assert max(within) < 1.5 * min(within), name
        assert min(beyond) > 2 * max(within), name


def test_fine_tuning_repairs_linear():
    """FORMULAS section 5: 16.10 before 200 steps, 7.12 after, at twice the length."""
    found = perplexities()
    for length in (n for n in LENGTHS if n <= FACTOR * TRAINED):
        assert found["linear fine-tuned"][length] < found["linear"][length] / 2


def test_a_figure_that_is_not_on_the_page_would_be_noticed(monkeypatch):
    from tools.docs import evaluation_tables

    changed = json.loads(json.dumps(read("evaluation/perplexity.json")))
    changed["points"][0]["perplexity"] += 1
    monkeypatch.setattr(
        evaluation_tables, "read", lambda name: changed if "perplexity" in name else read(name)
    )
    assert evaluation_tables.updated(TEXT) != TEXT
