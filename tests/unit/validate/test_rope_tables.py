"""Oracles: the scaling methods' own tables, and transformers' functions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.scaling import resolve
from ctx_export.scaling._length_table import LengthTable
from ctx_export.scaling.base import RotaryShape
from ctx_export.validate.rope_parameters import Scaling
from ctx_export.validate.rope_tables import (
    checked_lengths,
    length_table,
    package_table,
    transformers_table,
)
from tests.unit.runtime.fakes import manifest

LENGTH, TARGET, HEAD_DIM = 64, 512, 16
LISTS = {
    "short_factor": np.linspace(1.0, 1.6, HEAD_DIM // 2).tolist(),
    "long_factor": np.geomspace(1.1, 12.0, HEAD_DIM // 2).tolist(),
}
METHODS: dict[str, tuple[str, float | None, dict[str, Any]]] = {
    "dynamic-ntk": ("dynamic-ntk", None, {}),
    "dynamic-ntk, factor": ("dynamic-ntk", 3.0, {}),
    "dynamic-yarn": ("dynamic-yarn", None, {"beta_fast": 16.0}),
    "dynamic-yarn, mscales": ("dynamic-yarn", None, {"mscale": 0.7, "mscale_all_dim": 1.3}),
    "longrope": ("longrope", 8.0, LISTS),
    "longrope, mscales": (
        "longrope",
        8.0,
        {**LISTS, "short_mscale": 1.05, "long_mscale": 1.25},
    ),
}


def package(method: str, factor: float | None, parameters: dict[str, Any]) -> Manifest:
    shape = RotaryShape(
        head_dim=HEAD_DIM,
        rotary_dim=HEAD_DIM,
        theta=1e4,
        original_context=LENGTH,
        max_position_embeddings=LENGTH,
    )
    found = resolve(method, shape, TARGET, factor, parameters)
    scaling = {
        "parameters": parameters,
        "inv_freq": [float(f) for f in found.table.inv_freq],
        "multiplier": found.table.multiplier,
        "length_table": None if found.length_table is None else found.length_table.to_json(),
    }
    return manifest(
        method=method,
        factor=found.factor,
        max_context=TARGET,
        scaling=json.loads(json.dumps(scaling)),
        model={"original_context": LENGTH},
    )


def config() -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "llama",
        hidden_size=32,
        head_dim=HEAD_DIM,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )


@pytest.mark.parametrize(("method", "factor", "parameters"), METHODS.values(), ids=METHODS)
def test_a_package_s_table_at_every_length_is_transformers_own(method, factor, parameters):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    held = package(method, factor, parameters)
    assert checked_lengths(held) == (1, 63, 64, 65, 128, 512)
    seen = set()
    for length in checked_lengths(held):
        table, multiplier = package_table(held)(length)
        assert table.dtype == np.float32
        theirs, factor_of_theirs = transformers_table(
            LlamaRotaryEmbedding, config(), Scaling.of(held), length
        )
        np.testing.assert_allclose(table, theirs, rtol=2e-6, atol=0)
        assert multiplier == pytest.approx(factor_of_theirs, rel=1e-6)
        seen.add(table.tobytes())
    assert len(seen) >= 2  # it does follow the length


def test_the_manifest_s_numbers_are_the_table():
    held = package("longrope", 8.0, LISTS)
    again = length_table(held)
    assert isinstance(again, LengthTable)
    assert again.to_json() == held.scaling["length_table"]
    at_target, multiplier = again.at(TARGET)
    assert at_target.astype(np.float32).tolist() == held.scaling["inv_freq"]
    assert multiplier == held.scaling["multiplier"]


def test_a_constant_table_is_the_same_at_every_length():
    held = package("yarn", None, {})
    assert length_table(held) is None and checked_lengths(held) == ()
    table, multiplier = package_table(held)(7)
    assert table.tolist() == held.scaling["inv_freq"]
    assert multiplier == held.scaling["multiplier"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ramp": "no"}, "is not valid: could not convert string to float"),
        ({"slope": None}, "is not valid: float"),
        ({"ramp": [0.0]}, "rows of a length table differ in shape"),
    ],
)
def test_a_table_that_is_none_is_refused(change, words):
    held = package("dynamic-ntk", None, {})
    held.scaling["length_table"].update(change)
    with pytest.raises(UserError, match=words):
        length_table(held)
