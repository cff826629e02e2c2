"""Every scaling method and cache policy at one target, each planned as an export would plan it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctx_export import cache, scaling
from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.recipe import Recipe, build_recipe

# Options that several policies take, and scaling methods beside a policy.
_SHARED = frozenset({"sinks", "window"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be planned: `given` are a recipe's fields, `methods` names of scaling methods and
    cache policies, none for all of them, or for the recipe file's own where there is one."""

    given: Mapping[str, Any] = field(default_factory=dict)
    methods: Sequence[str] = ()
    file: Path | None = None
    settings: Sequence[str] = ()

    def recipe(self) -> Recipe:
        """What all methods share."""
        return build_recipe(self._shared(), file=self.file, settings=self.settings)

    def _shared(self) -> dict[str, Any]:
        own = _policies_own()
        return {key: value for key, value in self.given.items() if key not in own}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One method at the target: its plan, or why it refuses."""

    name: str
    recipe: Recipe | None
    plan: Plan | None
    refusal: str | None = None

    @property
    def cache(self) -> str | None:
        """The cache policy, None where every token is kept."""
        return None if self.recipe is None else self.recipe.cache


def plan_methods(spec: ModelSpec, question: Question, target: int) -> tuple[Planned, ...]:
    """The methods in question on a model, at `target` tokens."""
    made = []
    for name, build in _recipes(question):
        recipe = None
        try:
            recipe = replace(build(), target=target)
            plan = make_plan(spec, recipe)
        except UserError as error:
            made.append(Planned(name=name, recipe=recipe, plan=None, refusal=str(error)))
            continue
        made.append(Planned(name=_name(recipe, plan), recipe=recipe, plan=plan))
    return tuple(made)


def _recipes(question: Question) -> list[tuple[str, Callable[[], Recipe]]]:
    """By the name to show where it refuses: what makes a method's recipe."""

    def build(given: Mapping[str, Any]) -> Callable[[], Recipe]:
        return lambda: build_recipe(given, file=question.file, settings=question.settings)

    if question.methods:
        for name in question.methods:
            if cache.find(name) is None:
                scaling.find(name)  # refuses an unknown name for all
        return [
            (name, build({**question.given, "method": name}))
            for name in dict.fromkeys(question.methods)
        ]
    if question.file is not None:
        return [(question.file.stem, build(question.given))]
    policies = cache.policies()
    chosen = question.given.get("cache")
    rows = [
        (name, build({**_without_own(question.given, chosen), "method": name}))
        for name in scaling.names()
    ]
    if chosen is None:
        rows += [
            (name, build({**_without_own(question.given, name), "method": name}))
            for name in policies
        ]
    return rows


def _without_own(given: Mapping[str, Any], policy: str | None) -> dict[str, Any]:
    """`given` without the options that belong to other policies than `policy`."""
    found = None if policy is None else cache.find(policy)
    own = set() if found is None else set(found.options)
    others = _policies_own() - own
    return {key: value for key, value in given.items() if key not in others}


def _policies_own() -> set[str]:
    """Options that belong to one policy each."""
    return {name for policy in cache.policies().values() for name in policy.options} - _SHARED


def _name(recipe: Recipe, plan: Plan) -> str:
    """A method, a cache policy, or both."""
    if recipe.cache is None:
        windowed = bool(recipe.window)
        policy = ("streaming" if recipe.sinks else "sliding-window") if windowed else None
    else:
        policy = recipe.cache
    if policy is None:
        return plan.method
    return policy if recipe.method is None else f"{plan.method} + {policy}"
