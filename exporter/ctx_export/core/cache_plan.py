"""Every layer's cache: full or bounded, which tokens are seen, how many slots."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ctx_export.cache.base import Asked, Bounds, Policy, Reach, ReachPolicy, WindowPolicy
from ctx_export.core.cache_type import AUTO
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import BOUNDED, CAUSAL, FULL, CacheInfo
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.recipe import Recipe
from ctx_export.core.rules import Landmark, Memory
from ctx_export.scaling.base import Method

_SLIDING_WINDOW = "sliding-window"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRequest:
    """What a recipe asks of all layers: a policy, None to keep every token, and the bounds of a
    window policy."""

    policy: Policy | None
    bounds: Bounds

    @property
    def span(self) -> int:
        """Distances that the model meets in a bounded cache; 0 where there is no such."""
        if isinstance(self.policy, WindowPolicy):
            return self.bounds.sinks + self.bounds.window
        bounded = self.policy is not None and self.policy.bounded
        return self.bounds.original_context if bounded else 0

    @property
    def bounded(self) -> bool:
        """Whether the policy keeps memory fixed for any number of tokens."""
        return self.policy is not None and self.policy.bounded


def cache_request(spec: ModelSpec, recipe: Recipe) -> CacheRequest:
    """The policy of a recipe, of a window policy with its defaults: as many tokens as the model
    was trained on.

    Raises UserError for sinks without a window, and for bounds that the policy cannot work with.
    """
    from ctx_export.cache import policies

    original = recipe.original_context or spec.original_context
    if recipe.cache is None and recipe.sinks and not recipe.window:
        raise UserError(
            f"sinks is {recipe.sinks} without a window, and every token is seen anyway: give "
            f"--window, such as --window {max(1, original - recipe.sinks)}"
        )
    name = recipe.cache
    if name is None and recipe.window:
        name = "streaming" if recipe.sinks else _SLIDING_WINDOW
    policy = None if name is None else policies()[name]
    if isinstance(policy, WindowPolicy):
        return CacheRequest(policy=policy, bounds=_bounds(policy, recipe, original))
    if policy is not None:
        _check_reach(policy, spec, recipe, original)
    none = Bounds(sinks=0, window=0, original_context=original)
    return CacheRequest(policy=policy, bounds=none)


def _bounds(policy: WindowPolicy, recipe: Recipe, original: int) -> Bounds:
    sinks = policy.default_sinks if recipe.sinks is None else recipe.sinks
    window = recipe.window if recipe.window else original - sinks
    bounds = Bounds(sinks=sinks, window=window, original_context=original)
    if recipe.window == 0 or window < 1:
        raise UserError(
            f"method {policy.name} needs a window and has {sinks} sinks and a window of {window} "
            f"within {original} trained tokens: give --window, at least 1"
        )
    reason = policy.refusal(bounds)
    if reason is not None:
        raise UserError(reason)
    if recipe.target is not None and sinks + window > recipe.target:
        raise UserError(
            f"sinks {sinks} and window {window} are {sinks + window} tokens, more than the target "
            f"of {recipe.target}: give --window {max(1, recipe.target - sinks)} or less, or a "
            f"--target of at least {sinks + window}"
        )
    return bounds


def _check_reach(policy: Policy, spec: ModelSpec, recipe: Recipe, original: int) -> None:
    """What no reach policy works with."""
    if all(spec.windows):
        raise UserError(
            f"every layer of the model has a window of its own, {max(spec.windows)} tokens at "
            f"most, and {policy.name} is for layers that see every token: leave it out"
        )
    if recipe.kv_cache_dtype != AUTO:
        raise UserError(
            f"kv_cache_dtype is {recipe.kv_cache_dtype}: {policy.name} has caches of the "
            "precision's type only; leave it out"
        )
    if recipe.target is None and not policy.bounded:
        raise UserError(
            f"{policy.name} keeps every token up to the target and there is none: give --target, "
            f"such as --target {4 * original}"
        )


def known_positions(spec: ModelSpec, recipe: Recipe, method: Method) -> int:
    """Positions that the model knows with its scaled table: what its config states of its own
    scaling, else the trained ones times the factor.

    Raises UserError where a scaling method was asked for and nobody said how far it scales.
    """
    original = recipe.original_context or spec.original_context
    own = recipe.method is None and recipe.original_context is None
    trained = max(original, spec.max_position_embeddings) if own else original
    factor = recipe.factor
    if factor is None and method.name == spec.rope.method:
        factor = spec.rope.parameters.get("factor")
    if not method.uses_factor:
        return trained
    stated = own and recipe.factor is None and trained > original
    if stated or (factor is None and own):
        return trained  # a config that states its scaled length has been trained on that
    if factor is None:
        raise UserError(
            f"method {method.name} beside {recipe.cache} scales the positions that {recipe.cache} "
            "works with, not to the target: give --factor, such as --factor 4"
        )
    return max(int(original * factor), trained)


def decide_reach(
    policy: ReachPolicy, recipe: Recipe, *, span: int, target: int, max_chunk: int
) -> Reach:
    """What `policy` makes of the recipe's options at `span` known positions."""
    given = {name: getattr(recipe, name) for name in policy.options}
    if given.get("window") == 0:
        raise UserError(
            f"window is 0: {policy.name} needs a window of at least 1, or leave it out"
        )
    options = {name: value for name, value in given.items() if value is not None}
    return policy.decide(Asked(span=span, target=target, max_chunk=max_chunk, options=options))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """What decides the slots: the baked context, tokens of a call, how keys are kept, and whether
    the scaling method works over a bounded cache."""

    target: int | None  # None: no cache may have a maximum
    max_chunk: int
    keys: str  # rotated, unrotated
    may_bound: bool


def layer_caches(
    spec: ModelSpec, request: CacheRequest, limits: CacheLimits, reach: Reach | None = None
) -> tuple[CacheInfo, ...]:
    """The cache of every layer. A layer's own window is kept; a window policy may narrow it, the
    others are for layers without one."""
    if reach is None:
        return tuple(_layer_cache(own, request, limits) for own in spec.windows)
    assert request.policy is not None
    rule = reach.rule
    assert limits.target is not None
    slots = limits.target
    if isinstance(rule, Landmark):
        slots = rule.slots(reach.sinks, rule.fed(reach.sinks, limits.target))
    if isinstance(rule, Memory):
        slots = rule.capacity(reach.sinks, reach.window, limits.max_chunk)
    far = CacheInfo(
        policy=BOUNDED if request.bounded else FULL,
        rule=request.policy.name,
        sinks=reach.sinks,
        window=reach.window,
        capacity=slots,
        keys="unrotated",
        parameters=rule,
    )
    own_limits = replace(limits, target=None if request.bounded else slots)
    nothing = CacheRequest(policy=None, bounds=request.bounds)
    return tuple(_layer_cache(own, nothing, own_limits) if own else far for own in spec.windows)


def _layer_cache(own: int, request: CacheRequest, limits: CacheLimits) -> CacheInfo:
    policy, asked = request.policy, request.bounds
    bounds = Bounds(sinks=0, window=own, original_context=asked.original_context)
    if isinstance(policy, WindowPolicy):
        window = min(own, asked.window) if own else asked.window
        bounds = Bounds(sinks=asked.sinks, window=window, original_context=asked.original_context)
    slots = bounds.sinks + bounds.window + limits.max_chunk - 1
    target = limits.target
    shorter = target is None or slots < target
    if target is not None and (
        not bounds.window or (policy is None and not (shorter and limits.may_bound))
    ):
        return CacheInfo(
            policy=FULL,
            rule=_SLIDING_WINDOW if bounds.window else CAUSAL,
            sinks=0,
            window=bounds.window,
            capacity=target,
            keys=limits.keys,
        )
    return CacheInfo(
        policy=BOUNDED,
        rule=policy.name if policy is not None else _SLIDING_WINDOW,
        sinks=bounds.sinks,
        window=bounds.window,
        capacity=slots,
        keys=limits.keys,
        sink_position=policy.sink_position(bounds)
        if isinstance(policy, WindowPolicy) and bounds.sinks
        else None,
    )
