"""Experts that all compute every token; oracle: transformers' own loop over the chosen ones."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import LlamaConfig, MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from ctx_export.frontends.experts import every_expert, use_every_expert


def mixtral(**changes: int) -> MixtralConfig:
    return MixtralConfig(hidden_size=16, intermediate_size=24, **changes)


def test_sum_is_that_of_the_chosen_experts():
    torch.manual_seed(0)
    config = mixtral(num_local_experts=5, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    experts = MixtralExperts(config)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    hidden = torch.randn(7, 16)
    chosen = torch.stack([torch.randperm(5)[:2] for _ in range(7)])
    weights = torch.rand(7, 2)
    expected = experts(hidden, chosen, weights)
    torch.testing.assert_close(every_expert(experts, hidden, chosen, weights), expected)


def test_its_cost_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        use_every_expert(mixtral(num_local_experts=8, num_experts_per_tok=2))
    assert "all 8 experts compute every token, 4 times the work of the 2" in caplog.text


@pytest.mark.parametrize(
    "config", [mixtral(num_local_experts=2, num_experts_per_tok=2), LlamaConfig()]
)
def test_nothing_is_told_where_it_costs_nothing(config, caplog):
    with caplog.at_level(logging.WARNING):
        use_every_expert(config)
    assert caplog.text == ""
