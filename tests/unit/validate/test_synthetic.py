"""Oracles: float64 numpy, and the bits of each precision."""

from __future__ import annotations

import numpy as np
import pytest

from ctx_export.validate.synthetic import Cache, cache_bytes, round_to, synthetic_cache

LAYERS, HEADS, DIM = 2, 3, 4


def sample(tokens: int = 50) -> Cache:
    """Keys and values whose spread differs from layer to layer, head to head, dim to dim."""
    generator = np.random.default_rng(3)

    def arrays() -> tuple[np.ndarray, ...]:
        spread = generator.uniform(0.1, 9.0, (LAYERS, 1, HEADS, 1, DIM))
        drawn = generator.standard_normal((LAYERS, 1, HEADS, tokens, DIM)) * spread
        return tuple(drawn.astype(np.float32))

    return Cache(keys=arrays(), values=arrays())


def test_every_channel_has_the_spread_of_the_model_s_own():
    model = sample()
    made = synthetic_cache(model, 20000, "fp32")
    assert made.length == 20000
    for kind in ("keys", "values"):
        for drawn, own in zip(getattr(made, kind), getattr(model, kind), strict=True):
            assert drawn.shape == (1, HEADS, 20000, DIM) and drawn.dtype == np.float32
            spread = np.sqrt((own.astype(np.float64) ** 2).mean((0, 2)))
            found = np.sqrt((drawn.astype(np.float64) ** 2).mean((0, 2)))
            np.testing.assert_allclose(found, spread, rtol=0.03)
            assert np.abs(drawn.mean((0, 2)) / spread).max() < 0.03


def test_layers_heads_keys_and_values_are_drawn_apart():
    ones = np.ones((1, HEADS, 2, DIM), np.float32)
    made = synthetic_cache(Cache(keys=(ones,) * 2, values=(ones,) * 2), 500, "fp32")
    rows = np.concatenate([*made.keys, *made.values], axis=1)[0].transpose(0, 2, 1)
    correlation = np.corrcoef(rows.reshape(-1, 500))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.25


def test_both_sides_get_the_same_cache_and_a_shorter_one_is_its_beginning():
    made, again = (synthetic_cache(sample(), 300, "fp32") for _ in range(2))
    for one, two in zip((*made.keys, *made.values), (*again.keys, *again.values), strict=True):
        np.testing.assert_array_equal(one, two)
    part = made.first(17)
    assert part.length == 17
    for one, two in zip((*part.keys, *part.values), (*made.keys, *made.values), strict=True):
        np.testing.assert_array_equal(one, two[:, :, :17])
        assert np.shares_memory(one, two)


@pytest.mark.parametrize(("precision", "kept_bits"), [("fp32", 23), ("fp16", 10), ("bf16", 7)])
def test_numbers_are_of_the_precision(precision, kept_bits):
    """A float32 number of a lower precision has zeros where its mantissa ends earlier."""
    made = synthetic_cache(sample(), 400, precision)
    for array in (*made.keys, *made.values):
        assert array.dtype == np.float32
        bits = array.view(np.uint32)
        normal = np.abs(array) >= 2.0**-14  # fp16's subnormals have fewer
        lost = bits[normal] & ((1 << (23 - kept_bits)) - 1)
        assert not lost.any()
        assert kept_bits == 23 or (bits[normal] >> (23 - kept_bits) & 1).any()


def test_rounding_goes_to_the_nearest_even():
    # Ties halfway between two neighbours of 1: units 2^-10 and 2^-7.
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-11), 1 + 2**-12], np.float32)
    assert round_to(values, "fp16").tolist() == [1, 1 + 2**-9, -1, 1]
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-9], np.float32)
    assert round_to(values, "bf16").tolist() == [1, 1 + 2**-6, 1]
    assert round_to(values, "fp32") is values


def test_bytes_of_a_cache_by_hand():
    # keys and values, 2 layers, 3 heads, 100 tokens, 4 dims, 4 bytes
    assert cache_bytes(2, 3, 4, 100) == 2 * 2 * 3 * 100 * 4 * 4
    made = synthetic_cache(sample(), 100, "fp32")
    assert sum(array.nbytes for array in (*made.keys, *made.values)) == 19200
