"""All figures of every method side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from ctx_export.core.errors import UserError
from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.recipe import Recipe
from ctx_export.planning.devices import Budget
from ctx_export.planning.fit import Candidate, Fit
from ctx_export.planning.kv_cache import KvCache, kv_cache
from ctx_export.planning.memory import Memory, largest_call, memory
from ctx_export.planning.methods import Question, plan_methods
from ctx_export.planning.source import PlanSource, read_source
from ctx_export.planning.weights import Weights, package_weights
from ctx_export.planning.work import Decode, Prefill, decode, prefill
from ctx_export.planning.workspace import CallShape

RESERVE = 0.1  # share of a budget that is kept free


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a package of one plan needs and does."""

    plan: Plan
    kv: KvCache
    memory: Memory
    prefill: Prefill
    decode: Decode
    fits: tuple[Fit, ...]

    @property
    def call(self) -> CallShape:
        """The largest call of a plugin layer."""
        return largest_call(self.plan, self.plan.max_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method: its figures, or why it refuses."""

    name: str
    cache: str | None
    figures: Figures | None
    refusal: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A model at a target; `weights` are those of a package."""

    source: PlanSource
    target: int
    max_batch: int
    precision: str
    kv_cache_dtype: str
    weights: Weights
    budgets: tuple[Budget, ...]
    reserve: float
    rows: tuple[Row, ...]

    @property
    def figures(self) -> tuple[Figures, ...]:
        """Of the methods that can be planned."""
        return tuple(row.figures for row in self.rows if row.figures is not None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the figures leave out, in words."""
        return tuple(_notes(self))


def plan_report(
    model: str | None,
    question: Question,
    budgets: tuple[Budget, ...] = (),
    reserve: float = RESERVE,
) -> Report:
    """Plan every method in question for `model`, by default the recipe file's.

    Raises UserError for a model that cannot be read or exported, for options that no method can
    work with: the reason that most of them give.
    """
    if not 0 <= reserve < 1:
        raise ValueError(f"reserve is {reserve:g}: it is a share of memory, at least 0, below 1")
    shared = question.recipe()
    source = read_source(model or shared.model, shared.precision)
    spec = source.spec
    target = shared.target or spec.max_position_embeddings
    precision = shared.precision or spec.precision
    weights = package_weights(source.parameters, source.stored, spec.precision, precision)
    rows = []
    for planned in plan_methods(spec, question, target):
        figures = None
        if planned.plan is not None and planned.recipe is not None:
            candidate = _candidate(source, weights, planned.plan, planned.recipe)
            fits = tuple(candidate.fit(budget, reserve) for budget in budgets)
            figures = _figures(source, weights, candidate, fits)
        rows.append(
            Row(name=planned.name, cache=planned.cache, figures=figures, refusal=planned.refusal)
        )
    reasons = Counter(row.refusal for row in rows)
    reason, _ = reasons.most_common(1)[0]
    if reasons[None] == 0 and reason is not None:
        raise UserError(reason)
    return Report(
        source=source,
        target=target,
        max_batch=shared.max_batch,
        precision=precision,
        kv_cache_dtype=shared.kv_cache_dtype,
        weights=weights,
        budgets=budgets,
        reserve=reserve,
        rows=tuple(rows),
    )


def _figures(
    source: PlanSource, weights: Weights, candidate: Candidate, fits: tuple[Fit, ...]
) -> Figures:
    plan, target = candidate.plan, candidate.target
    kv = kv_cache(plan)
    return Figures(
        plan=plan,
        kv=kv,
        memory=candidate.memory(plan, plan.max_batch),
        prefill=prefill(plan, kv, source.parameters, weights, target),
        decode=decode(plan, kv, source.parameters, weights, target),
        fits=fits,
    )


def _candidate(source: PlanSource, weights: Weights, plan: Plan, recipe: Recipe) -> Candidate:
    """`plan` of `recipe` and those for other targets, each made once for all budgets."""
    assert recipe.target is not None

    @cache
    def replan(other: int) -> Plan:
        return make_plan(source.spec, replace(recipe, target=other))

    def sized(plan: Plan, batch: int) -> Memory:
        return memory(plan, source.parameters, weights, batch)

    shortest = max(plan.original_context, recipe.max_chunk or 1)
    return Candidate(
        plan=plan, target=recipe.target, shortest=shortest, replan=replan, memory=sized
    )


def _notes(report: Report) -> Iterator[str]:
    yield from report.source.notes
    counted = report.source.parameters
    if not counted.exact:
        yield (
            f"the weights of family {report.source.spec.family} are estimated as llama's would be:"
            " operations and activations, and without shards bytes, too"
        )
    if counted.has_experts:
        share = counted.matrices / counted.active_matrices
        yield (
            f"all experts compute every token, {share:.3g} times the weight operations of the "
            "chosen ones, and all are read; the chosen ones' figures are in --json"
        )
    if any(f.decode.most_cache_bytes > f.decode.cache_bytes for f in report.figures):
        yield (
            "landmark: decode bytes are the least, where all heads of a KV head choose the same "
            "blocks; the most are in --json"
        )
    if any(f.kv.dtype == "bfloat16" for f in report.figures):
        yield (
            "onnxruntime's CPU provider runs bfloat16 packages as float32, with caches and "
            "weights of twice these bytes"
        )
    if any(budget.shared for budget in report.budgets):
        yield "a Jetson's memory is also the CPU's: raise --reserve by what runs there"
