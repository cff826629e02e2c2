"""Which methods are planned, with which options. Oracle: make_plan of the recipe that ctx-export
would make of the same options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctx_export import cache, scaling
from ctx_export.core.errors import UserError
from ctx_export.core.plan import make_plan
from ctx_export.core.recipe import build_recipe
from ctx_export.planning.methods import Planned, Question, plan_methods
from ctx_export.planning.source import read_source
from tests.unit.planning.configs import LLAMA2_70B, write

TARGET = 65536


def planned(path: Path, *methods: str, **given: Any) -> dict[str, Planned]:
    spec = read_source(write(path / "model.json", LLAMA2_70B)).spec
    made = plan_methods(spec, Question(given=given, methods=methods), TARGET)
    return {entry.name: entry for entry in made}


def test_all_methods_and_policies_are_planned(tmp_path: Path) -> None:
    found = planned(tmp_path)
    assert list(found) == [*scaling.names(), *cache.names()]
    refused = {name for name, entry in found.items() if entry.plan is None}
    assert refused == {"longrope", "theta"}
    assert "rope_theta is missing" in (found["theta"].refusal or "")


def test_each_is_the_plan_of_an_export(tmp_path: Path) -> None:
    spec = read_source(write(tmp_path / "model.json", LLAMA2_70B)).spec
    given = {"precision": "fp16", "max_batch": 2, "max_chunk": 300, "original_context": 2048}
    for name, entry in planned(tmp_path, **given).items():
        if entry.plan is None:
            continue
        recipe = build_recipe({**given, "method": name, "target": TARGET})
        expected = make_plan(spec, recipe)
        assert entry.plan.caches == expected.caches
        assert entry.plan.to_json() == expected.to_json()


def test_options_of_one_policy_stay_with_it(tmp_path: Path) -> None:
    found = planned(tmp_path, memory_tokens=64, landmark_block=32)
    assert found["yarn"].plan is not None and found["yarn"].cache is None
    memory, landmark = found["memory"].plan, found["landmark"].plan
    assert memory is not None and landmark is not None
    assert memory.caches[0].parameters.memory == 64  # type: ignore[union-attr]
    assert landmark.caches[0].parameters.block == 32  # type: ignore[union-attr]


def test_a_named_method_takes_options_as_an_export_does(tmp_path: Path) -> None:
    found = planned(tmp_path, "yarn", memory_tokens=64)
    assert list(found) == ["yarn + memory"]


def test_a_policy_beside_scaling_methods(tmp_path: Path) -> None:
    found = planned(tmp_path, cache="streaming", sinks=4, window=1000)
    assert "yarn + streaming" in found and "memory" not in found
    assert {entry.cache for entry in found.values() if entry.plan} == {"streaming"}
    # Frequencies that follow the length do not go with a ring.
    assert "which has no limit over a bounded cache" in (found["dynamic-ntk"].refusal or "")


def test_windows_are_for_all_and_refused_by_those_that_have_none(tmp_path: Path) -> None:
    found = planned(tmp_path, window=1000)
    assert found["yarn + sliding-window"].plan is not None
    assert "has no such option" in (found["self-extend"].refusal or "")


def test_a_recipe_file_is_planned_alone(tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    file.write_text("method: yarn\nscaling: {factor: 32, beta_fast: 16}\n")
    spec = read_source(write(tmp_path / "model.json", LLAMA2_70B)).spec
    (made,) = plan_methods(spec, Question(file=file), TARGET)
    assert made.plan is not None and made.plan.factor == 32
    assert made.plan.parameters["beta_fast"] == 16
    two = plan_methods(spec, Question(file=file, methods=("yarn", "linear")), TARGET)
    assert [entry.name for entry in two] == ["yarn", "linear"]
    assert "beta_fast" in (two[1].refusal or "")


def test_settings_reach_the_method_that_needs_them(tmp_path: Path) -> None:
    spec = read_source(write(tmp_path / "model.json", LLAMA2_70B)).spec
    question = Question(methods=("theta", "abf"), settings=("scaling.rope_theta=1e6",))
    for made in plan_methods(spec, question, TARGET):
        assert made.name == "theta"
        assert made.plan is not None and made.plan.table.details["base"] == 1e6


def test_an_unknown_method_is_refused_for_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown method 'yarm'.*yarn"):
        planned(tmp_path, "yarn", "yarm")
