"""self-extend: near tokens at their own positions, far ones in groups that share a position."""

from __future__ import annotations

from ctx_export.cache.base import Asked, Reach, ReachPolicy
from ctx_export.core.errors import UserError
from ctx_export.core.rules import SelfExtend

_NEAR = 4  # a quarter of the span is met at its own positions


def reach(span: int, group: int, neighbor: int) -> int:
    """Longest context whose positions stay within `span` (arXiv 2401.01325, section 3.3)."""
    return (span - neighbor) * group + neighbor


def decide(asked: Asked) -> Reach:
    """By default the smallest group that reaches the target."""
    given, span, target = asked.options, asked.span, asked.target
    group = given.get("group")
    neighbor = given.get("neighbor")
    if neighbor is None:
        neighbor = max(1, span // _NEAR)
        neighbor = max(1, neighbor // group) * group if group else neighbor
    if group is None:
        divisors = [g for g in range(1, neighbor + 1) if neighbor % g == 0]
        fitting = [g for g in divisors if reach(span, g, neighbor) >= target]
        group = min(fitting, default=divisors[-1])
    if neighbor % group or neighbor >= span:
        raise UserError(
            f"neighbor is {neighbor} and group {group} with {span} positions: neighbor must be a "
            f"multiple of group below {span}; give --neighbor {max(1, neighbor // group) * group}"
        )
    longest = reach(span, group, neighbor)
    if longest < target:
        needed = -(-(target - neighbor) // (span - neighbor))
        fitting_neighbor = max(needed, neighbor // needed * needed)
        raise UserError(
            f"self-extend in groups of {group} beyond {neighbor} tokens reaches {longest} tokens, "
            f"less than the target of {target}: give --group {needed} --neighbor "
            f"{fitting_neighbor}, or --target {longest}"
        )
    return Reach(rule=SelfExtend(group=group, neighbor=neighbor))


POLICY = ReachPolicy(
    name="self-extend",
    summary="near tokens at their own positions, far ones in groups that share a position",
    source="Self-Extend, arXiv 2401.01325",
    options=("group", "neighbor"),
    bounded=False,
    decide=decide,
)
