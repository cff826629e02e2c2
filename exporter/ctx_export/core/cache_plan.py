"""Every layer's cache: full or bounded, which tokens are seen, how many slots."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.cache.base import Bounds, Policy
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import BOUNDED, CAUSAL, FULL, CacheInfo
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.recipe import Recipe

_SLIDING_WINDOW = "sliding-window"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRequest:
    """What a recipe asks of all layers: a policy and its bounds, None to keep every token."""

    policy: Policy | None
    bounds: Bounds

    @property
    def span(self) -> int:
        """Distances that the model meets; 0 where no policy was asked for."""
        return self.bounds.sinks + self.bounds.window if self.policy is not None else 0


def cache_request(spec: ModelSpec, recipe: Recipe) -> CacheRequest:
    """The policy of a recipe with its defaults: as many tokens as the model was trained on.

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
    if name is None:
        none = Bounds(sinks=0, window=0, original_context=original)
        return CacheRequest(policy=None, bounds=none)
    policy = policies()[name]
    sinks = policy.default_sinks if recipe.sinks is None else recipe.sinks
    window = recipe.window if recipe.window else original - sinks
    bounds = Bounds(sinks=sinks, window=window, original_context=original)
    if recipe.window == 0 or window < 1:
        raise UserError(
            f"method {name} needs a window and has {sinks} sinks and a window of {window} within "
            f"{original} trained tokens: give --window, at least 1"
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
    return CacheRequest(policy=policy, bounds=bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """What decides the slots: the baked context, tokens of a call, how keys are kept, and whether
    the scaling method works over a bounded cache."""

    target: int
    max_chunk: int
    keys: str  # rotated, unrotated
    may_bound: bool


def layer_caches(
    spec: ModelSpec, request: CacheRequest, limits: CacheLimits
) -> tuple[CacheInfo, ...]:
    """The cache of every layer. A layer's own window is kept; a policy may narrow it."""
    return tuple(_layer_cache(own, request, limits) for own in spec.windows)


def _layer_cache(own: int, request: CacheRequest, limits: CacheLimits) -> CacheInfo:
    policy, asked = request.policy, request.bounds
    if policy is None:
        bounds = Bounds(sinks=0, window=own, original_context=asked.original_context)
    else:
        window = min(own, asked.window) if own else asked.window
        bounds = Bounds(sinks=asked.sinks, window=window, original_context=asked.original_context)
    slots = bounds.sinks + bounds.window + limits.max_chunk - 1
    shorter = slots < limits.target
    if not bounds.window or (policy is None and not (shorter and limits.may_bound)):
        return CacheInfo(
            policy=FULL,
            rule=_SLIDING_WINDOW if bounds.window else CAUSAL,
            sinks=0,
            window=bounds.window,
            capacity=limits.target,
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
        if policy is not None and bounds.sinks
        else None,
    )
