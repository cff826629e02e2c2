"""Indices and attention in words that PyTorch traces. Oracle: PyTorch's own results."""

from __future__ import annotations

import pytest
import torch

from ctx_export.frontends.traceable import traceable, without_list


@pytest.mark.parametrize("number", [-4, -2, -1, 0, 3])
def test_a_list_of_one_number_takes_the_same_slice(number):
    x = torch.arange(24).reshape(2, 4, 3)
    expected = x[:, [number]]
    with traceable():
        taken = x[:, [number]]
        alone = x[0][..., [number % 3]]
    assert torch.equal(taken, expected)
    assert torch.equal(alone, x[0, :, number % 3][:, None])


@pytest.mark.parametrize("index", [([0], [1]), [0, 1], ([True],), (0, ...), slice(1, 2)])
def test_other_indices_are_left_alone(index):
    assert without_list(index) is index


def test_keys_of_one_head_attend_as_they_do_without():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 1, 5, 8), torch.randn(2, 1, 5, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    expected = attention(q, k, v, is_causal=True)
    with traceable():
        result = attention(q, k, v, is_causal=True)
    assert torch.allclose(result, expected, atol=1e-6)
