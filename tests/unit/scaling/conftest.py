"""The oracle of the scaling tests: transformers' own functions over a config it made itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ctx_export.scaling.base import RotaryShape

Oracle = Callable[..., tuple[np.ndarray, float]]


@pytest.fixture
def make_shape() -> Callable[..., RotaryShape]:
    def make(
        head_dim: int = 128,
        rotary_dim: int | None = None,
        theta: float = 10000.0,
        original: int = 4096,
        maximum: int | None = None,
    ) -> RotaryShape:
        return RotaryShape(
            head_dim=head_dim,
            rotary_dim=rotary_dim or head_dim,
            theta=theta,
            original_context=original,
            max_position_embeddings=maximum or original,
        )

    return make


@pytest.fixture
def transformers_table() -> Oracle:
    """(inv_freq float32 [F], attention factor) of `rope_type`, by transformers."""

    def compute(
        rope_type: str, shape: RotaryShape, seq_len: int | None = None, **parameters: Any
    ) -> tuple[np.ndarray, float]:
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        if shape.rotary_dim != shape.head_dim:
            parameters["partial_rotary_factor"] = shape.rotary_dim / shape.head_dim
        if rope_type in ("yarn", "llama3", "longrope"):
            parameters["original_max_position_embeddings"] = shape.original_context
        config = LlamaConfig(
            head_dim=shape.head_dim,
            hidden_size=2 * shape.head_dim,
            num_attention_heads=2,
            max_position_embeddings=shape.max_position_embeddings,
            rope_parameters={"rope_type": rope_type, "rope_theta": shape.theta, **parameters},
        )
        inv_freq, multiplier = ROPE_INIT_FUNCTIONS[rope_type](config, "cpu", seq_len=seq_len)
        return inv_freq.numpy(), multiplier

    return compute


def assert_same_table(table: Any, expected: tuple[np.ndarray, float]) -> None:
    """float32, same length, 2e-6 relative (transformers' own float32 rounding is 1.3e-6)."""
    inv_freq, multiplier = expected
    assert table.inv_freq.dtype == np.float32
    assert table.inv_freq.shape == inv_freq.shape
    np.testing.assert_allclose(table.inv_freq, inv_freq, rtol=2e-6, atol=0)
    assert table.multiplier == pytest.approx(multiplier, rel=1e-12)


def assert_same_values(values: Any, expected: tuple[np.ndarray, float]) -> None:
    """As assert_same_table, for a float64 (inv_freq, multiplier)."""
    inv_freq, multiplier = values
    assert inv_freq.dtype == np.float64
    assert inv_freq.shape == expected[0].shape
    np.testing.assert_allclose(inv_freq, expected[0], rtol=2e-6, atol=0)
    assert multiplier == pytest.approx(expected[1], rel=1e-12)


class Float64Torch:
    """torch whose names for float32 mean float64."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, "float64" if name in ("float", "float32") else name)


@pytest.fixture
def transformers_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' functions evaluated in float64.

    In float32 its yarn computes 1 − (1 − ramp), which at the top of an untruncated ramp loses up
    to s·6e-8 relative: 4.3e-6 at s = 40.
    """
    from transformers import modeling_rope_utils

    monkeypatch.setattr(modeling_rope_utils, "torch", Float64Torch())


@pytest.fixture
def same_table() -> Callable[[Any, tuple[np.ndarray, float]], None]:
    return assert_same_table


@pytest.fixture
def same_values() -> Callable[[Any, tuple[np.ndarray, float]], None]:
    return assert_same_values
