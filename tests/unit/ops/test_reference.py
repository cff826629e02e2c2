"""The float64 reference of rotation inside the attention; oracle: angles and weights by hand."""

from __future__ import annotations

from dataclasses import replace
from math import cos, exp, sin

import numpy as np
import pytest

from ctx_export.ops.reference import AttentionCase, sink_window_attention
from ctx_export.ops.spec import Rotation

FREQUENCY, FACTOR, POSITION = 0.1, 1.5, 7


def unit_case(rotation: Rotation) -> AttentionCase:
    """One query (1, 0) at position 7; every key is (1, 0) before its rotation, the value of token
    t is (t, 1). Tokens 0 and 1 are sinks, the window holds 5, 6 and 7."""
    seen = POSITION
    past = np.zeros((1, 1, 8, 2))
    for token in range(seen):
        angle = FREQUENCY * token if rotation == Rotation.ON_WRITE else None
        past[0, 0, token] = (1, 0) if angle is None else (FACTOR * cos(angle), FACTOR * sin(angle))
    values = np.array([[t, 1.0] for t in range(8)])[None, None]
    one = np.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    return AttentionCase(
        q=one,
        k=one,
        v=values[:, :, seen:],
        past_key=past,
        past_value=values,
        seen=np.array([seen]),
        new=np.array([1]),
        sinks=2,
        window=3,
        inv_freq=np.array([[FREQUENCY]]),
        multiplier=np.array([FACTOR]),
        rotary_dim=2,
        rotation=rotation,
    )


@pytest.mark.parametrize("rotation", [Rotation.ON_WRITE, Rotation.QUERY_AND_KEYS_ON_READ])
@pytest.mark.parametrize(
    ("sink_position", "distances"),
    [
        (0, {0: 7, 1: 6, 5: 2, 6: 1, 7: 0}),
        (4, {0: 4, 1: 3, 5: 2, 6: 1, 7: 0}),  # sinks + window - 1, as streaming has it
        (9, {0: 7, 1: 6, 5: 2, 6: 1, 7: 0}),  # not reached yet
    ],
)
def test_logits_depend_on_the_distance_each_key_is_met_at(rotation, sink_position, distances):
    case = replace(unit_case(rotation), sink_position=sink_position)
    y, present_key, _ = sink_window_attention(case)
    # q and k are both multiplied, so the logit is the square of the factor times the cosine.
    weights = {t: exp(FACTOR**2 * cos(FREQUENCY * d)) for t, d in distances.items()}
    mean = sum(t * w for t, w in weights.items()) / sum(weights.values())
    np.testing.assert_allclose(y[0, 0, 0], [mean, 1.0], rtol=1e-14)
    angle = FREQUENCY * POSITION
    cached = (
        (FACTOR * cos(angle), FACTOR * sin(angle)) if rotation == Rotation.ON_WRITE else (1, 0)
    )
    np.testing.assert_allclose(present_key[0, 0, POSITION], cached, rtol=1e-14)
