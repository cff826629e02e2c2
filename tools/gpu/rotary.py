"""Frequencies for measurements, and rotation by torch in float64 as their oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.gpu.ours import Rotary

if TYPE_CHECKING:
    from torch import Tensor

_BASE, _MULTIPLIER = 500000.0, 1.1


def table(head_dim: int, device: str, *, interleaved: bool = False) -> Rotary:
    """All of `head_dim` rotates, by the base of Llama 3."""
    import torch

    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return Rotary(
        inverse_frequency=(_BASE**-exponent).float()[None].to(device),
        multiplier=torch.full((1,), _MULTIPLIER, device=device),
        interleaved=interleaved,
    )


def rotated(x: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
    """x [B,H,S,D] at positions [1|B,S] (arXiv 2104.09864), one head at a time in float64."""
    import torch

    angle = positions[..., None].double() * rotary.inverse_frequency.double()[:, None]
    scale = rotary.multiplier.double()[:, None, None]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    pairs = x.shape[-1] // 2
    first, second = (
        (slice(0, None, 2), slice(1, None, 2))
        if rotary.interleaved
        else (slice(0, pairs), slice(pairs, None))
    )
    y = torch.empty_like(x)
    for head in range(x.shape[1]):
        a, b = x[:, head, :, first].double(), x[:, head, :, second].double()
        y[:, head, :, first] = (a * cos - b * sin).to(x.dtype)
        y[:, head, :, second] = (b * cos + a * sin).to(x.dtype)
    return y
