"""Oracle: dictionaries as they stand in Hugging Face configs, written by hand."""

from __future__ import annotations

import pytest

from ctx_export.core.errors import UserError
from ctx_export.scaling import names
from ctx_export.validate.rope_parameters import Scaling, Trained, rope_parameters
from tests.unit.runtime.fakes import manifest

TRAINED = Trained(theta=10000.0, partial_rotary_factor=1.0, head_dim=64)
LISTS = {"short_factor": (1.0, 1.5), "long_factor": (2.0, 8.0)}
HF_LISTS = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 8.0]}
RAMP = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


def scaling(method: str, target: int = 1024, **changes) -> Scaling:
    return Scaling(method=method, original_context=256, target=target, **changes)


CASES = {
    "none": (scaling("none"), {"rope_type": "default", "rope_theta": 10000.0}),
    "theta": (
        scaling("theta", parameters={"rope_theta": 1e6}),
        {"rope_type": "default", "rope_theta": 1e6},
    ),
    # b·s^(d/(d−2)) with d = 64, s = 4: 10000·4^(64/62)
    "ntk": (
        scaling("ntk", factor=4.0),
        {"rope_type": "default", "rope_theta": pytest.approx(41829.4, rel=1e-5)},
    ),
    "linear": (
        scaling("linear", factor=4.0),
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "llama3": (
        scaling(
            "llama3", factor=8.0, parameters={"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        ),
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ),
    "yarn": (
        scaling("yarn", factor=4.0, parameters={**RAMP, "attention_factor": None}),
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            **RAMP,
        },
    ),
    "yarn, everything given": (
        scaling(
            "yarn",
            factor=40.0,
            parameters={
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "truncate": False,
                "attention_factor": 1.25,
                "mscale": 0.7,
                "mscale_all_dim": 1.0,
            },
        ),
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 40.0,
            "original_max_position_embeddings": 256,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
            "attention_factor": 1.25,
            "mscale": 0.7,
            "mscale_all_dim": 1.0,
        },
    ),
    "ntk-by-parts": (
        scaling("ntk-by-parts", factor=4.0, parameters=RAMP),
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            "attention_factor": 1.0,
            **RAMP,
        },
    ),
    "longrope": (
        scaling("longrope", factor=32.0, parameters=LISTS),
        {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 256,
            **HF_LISTS,
        },
    ),
    "longrope, long mscale": (
        scaling(
            "longrope", factor=32.0, parameters={**LISTS, "short_mscale": 1.1, "long_mscale": 1.2}
        ),
        {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 256,
            "attention_factor": 1.2,
            **HF_LISTS,
        },
    ),
    "longrope, short mscale": (
        scaling(
            "longrope",
            target=256,
            factor=32.0,
            parameters={**LISTS, "short_mscale": 1.1, "long_mscale": 1.2},
        ),
        {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 256,
            "attention_factor": 1.1,
            **HF_LISTS,
        },
    ),
    "longrope, attention factor first": (
        scaling(
            "longrope",
            factor=32.0,
            parameters={**LISTS, "long_mscale": 1.2, "attention_factor": 1.3},
        ),
        {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 256,
            "attention_factor": 1.3,
            **HF_LISTS,
        },
    ),
    "dynamic-ntk": (
        scaling("dynamic-ntk", factor=4.0),
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    # At a rope length of 1024 tokens, four times the trained ones; below, plain rotation.
    "dynamic-yarn": (
        scaling("dynamic-yarn", parameters=RAMP),
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            **RAMP,
        },
    ),
    "dynamic-yarn, short": (
        scaling("dynamic-yarn", target=100, parameters=RAMP),
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 1.0,
            "original_max_position_embeddings": 256,
            **RAMP,
        },
    ),
    "proportional": (
        scaling("proportional", factor=4.0, parameters={"partial_rotary_factor": 0.25}),
        {
            "rope_type": "proportional",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "partial_rotary_factor": 0.25,
        },
    ),
}


@pytest.mark.parametrize(("given", "expected"), CASES.values(), ids=CASES)
def test_methods_in_hugging_face_s_words(given, expected):
    assert rope_parameters(given, TRAINED) == expected


def test_every_method_that_can_be_exported_has_its_case():
    assert {given.method for given, _ in CASES.values()} == set(names())


PARTIAL = Trained(theta=5e5, partial_rotary_factor=0.5, head_dim=64)


@pytest.mark.parametrize("method", ["none", "linear", "yarn", "llama3", "longrope"])
def test_partial_rotation_and_base_are_the_model_s(method):
    found = rope_parameters(scaling(method, factor=2.0, parameters={}), PARTIAL)
    assert (found["partial_rotary_factor"], found["rope_theta"]) == (0.5, 5e5)


def test_ntk_s_base_follows_the_rotated_dims():
    # d = 32: 500000·2^(32/30)
    found = rope_parameters(scaling("ntk", factor=2.0), PARTIAL)
    assert found["rope_theta"] == pytest.approx(1047294.1, rel=1e-6)


def test_proportional_without_a_share_has_the_model_s():
    found = rope_parameters(scaling("proportional", factor=2.0), PARTIAL)
    assert found["partial_rotary_factor"] == 0.5


def test_a_method_that_transformers_lacks_is_refused():
    with pytest.raises(UserError, match="method landmark has no PyTorch reference"):
        rope_parameters(scaling("landmark"), TRAINED)


def test_a_package_s_scaling_is_its_manifest_s():
    model = {"original_context": 512}
    held = {"parameters": {"beta_fast": 16.0}, "inv_freq": [1.0]}
    package = manifest(method="yarn", factor=8.0, max_context=4096, scaling=held, model=model)
    found = Scaling.of(package)
    assert found == Scaling(
        method="yarn",
        parameters={"beta_fast": 16.0},
        factor=8.0,
        original_context=512,
        target=4096,
    )
    assert found.long_table


@pytest.mark.parametrize(("target", "long"), [(256, False), (257, True), (1024, True)])
def test_longrope_s_long_table_begins_beyond_the_trained_context(target, long):
    assert scaling("longrope", target=target).long_table is long


@pytest.mark.parametrize(
    ("maximum", "by_length", "target"), [(4096, None, 4096), (None, None, 512), (None, {}, 513)]
)
def test_where_nothing_ends_longrope_s_table_is_the_one_baked(maximum, by_length, target):
    """The short list in every layer's ring; with both lists the long one is stated."""
    package = manifest(
        method="longrope",
        max_context=maximum,
        scaling={"inv_freq": [1.0], "length_table": by_length},
        model={"original_context": 512},
    )
    assert Scaling.of(package).target == target
