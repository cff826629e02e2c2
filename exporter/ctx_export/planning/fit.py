"""The longest context and the most sequences that fit a budget, by search on the plan itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ctx_export.core.errors import UserError
from ctx_export.core.plan import Plan
from ctx_export.planning.devices import Budget
from ctx_export.planning.memory import Memory

LONGEST = 1 << 40  # tokens; more than the kernels take in a cache
MOST = 1 << 31  # sequences; likewise
OUT_OF_MEMORY = "memory"
KERNELS = "the kernels take no larger caches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What fits a budget. `context` is the longest at max_batch, None where caches of fixed size
    take any number of tokens, 0 where none fits; `batch` the most sequences at the target."""

    budget: Budget
    usable: int  # bytes
    needed: int  # bytes, at the target and max_batch
    fits: bool
    context: int | None
    context_limit: str  # why it is no longer
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One method to fit: `plan` for `target`, what makes the plan for another one (it may raise
    UserError), and a plan's memory for a number of sequences. No target below `shortest` is
    tried."""

    plan: Plan
    target: int
    shortest: int
    replan: Callable[[int], Plan]
    memory: Callable[[Plan, int], Memory]

    def fit(self, budget: Budget, reserve: float) -> Fit:
        """What fits `budget` with the share `reserve` of it kept free."""
        usable = budget.usable(reserve)
        now = self.memory(self.plan, self.plan.max_batch)
        fits = _fits(now, usable)
        if self.plan.max_context is None:
            context, limit = (None, "") if fits else (0, OUT_OF_MEMORY)
        else:
            context, limit = self._longest(usable)
        return Fit(
            budget=budget,
            usable=usable,
            needed=now.needed,
            fits=fits,
            context=context,
            context_limit=limit,
            batch=_most(lambda batch: _fits(self.memory(self.plan, batch), usable)),
        )

    def _longest(self, usable: int) -> tuple[int, str]:
        """The longest context, and why it is no longer. What is needed never falls with the
        target: where a guess along its slope fails, the rest is halved."""
        low = self._at(self.shortest)
        if low is None or not _fits(low, usable):
            return 0, OUT_OF_MEMORY if low is not None else self._refusal(self.shortest)
        shortest, longest, slope, halve = self.shortest, LONGEST, 0, False
        while longest - shortest > 1:
            along = shortest + (usable - low.needed) // slope if slope else self.target
            guess = (shortest + longest) // 2 if halve else along
            guess = min(max(guess, shortest + 1), longest - 1)
            found = self._at(guess)
            if found is None or not _fits(found, usable):
                longest, halve = guess, not halve
                continue
            slope = max(1, (found.needed - low.needed) // (guess - shortest))
            shortest, low, halve = guess, found, False
        return shortest, self._limit(longest)

    def _at(self, target: int) -> Memory | None:
        """Memory at another target, None where that cannot be planned."""
        try:
            plan = self.replan(target)
        except UserError:
            return None
        return self.memory(plan, plan.max_batch)

    def _limit(self, target: int) -> str:
        """Why `target` does not fit."""
        found = self._at(target)
        if found is None:
            return self._refusal(target)
        return OUT_OF_MEMORY if found.possible else KERNELS

    def _refusal(self, target: int) -> str:
        try:
            self.replan(target)
        except UserError as error:
            return str(error)
        return OUT_OF_MEMORY


def _fits(memory: Memory, usable: int) -> bool:
    return memory.possible and memory.needed <= usable


def _most(fits: Callable[[int], bool]) -> int:
    """The largest number that `fits`, where every smaller one does, too; 0 for none."""
    low, high = 0, 1
    while high < MOST and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
