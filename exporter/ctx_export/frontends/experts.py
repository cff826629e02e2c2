"""Mixtures of experts as PyTorch can export them: every expert computes every token.

transformers' own ways sort tokens by expert, which ONNX has no operators for. The router's weights
are the same; an expert that was not chosen has weight 0.
"""

from __future__ import annotations

import logging
from typing import Any

_LOG = logging.getLogger(__name__)
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")  # as families call it

EVERY_EXPERT = "ctx_every_expert"


def use_every_expert(config: Any) -> None:
    """Make models of `config` compute their experts by `every_expert`; warns of what it costs."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(EVERY_EXPERT, every_expert)
    config._experts_implementation = EVERY_EXPERT
    experts = next((getattr(config, name) for name in _COUNTS if hasattr(config, name)), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    if experts and chosen and experts > chosen:
        _LOG.warning(
            "all %d experts compute every token, %.3g times the work of the %d that the model "
            "chooses: ONNX has no operator that sorts tokens by expert",
            experts,
            experts / chosen,
            chosen,
        )


def every_expert(experts: Any, hidden: Any, chosen: Any, weights: Any) -> Any:
    """[T,H] of `hidden` [T,H]: the sum over `chosen` [T,K] experts by `weights` [T,K]."""
    shape = (hidden.shape[0], experts.num_experts)
    shares = weights.new_zeros(shape).scatter(1, chosen, weights).T[..., None]  # [E,T,1]
    inner = _projected(experts, hidden[None], "gate_up_proj")
    out = _projected(experts, experts._apply_gate(inner), "down_proj")
    return (out * shares).sum(0).to(hidden.dtype)


def _projected(experts: Any, x: Any, name: str) -> Any:
    """[E,T,O] of x [1|E,T,I] by every expert's own matrix and bias."""
    matrix = getattr(experts, name)
    product = x @ (matrix if experts.is_transposed else matrix.transpose(1, 2))
    return product + getattr(experts, f"{name}_bias")[:, None] if experts.has_bias else product
