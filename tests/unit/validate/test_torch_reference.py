"""Oracles: transformers' unmodified models where float32 angles are exact enough, and a llama in
float64 numpy everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.validate import torch_reference
from ctx_export.validate.rope_parameters import Scaling
from ctx_export.validate.synthetic import Cache
from ctx_export.validate.torch_reference import (
    HuggingFaceRope,
    Rotary,
    TorchReference,
    head_dimension,
    hugging_face_rope,
    load_config,
)
from tests.support import tiny
from tests.unit.validate.float64_llama import Float64Llama, plain_table

LENGTH = tiny.ORIGINAL_CONTEXT
IDS = np.random.default_rng(5).integers(0, tiny.VOCAB, 150)
PLAIN = {"rope_type": "default", "rope_theta": tiny.THETA}
YARN = {
    "rope_type": "yarn",
    "rope_theta": tiny.THETA,
    "factor": 16.0,
    "original_max_position_embeddings": LENGTH,
}
SHORT, LONG = np.linspace(1.0, 1.5, 8), np.linspace(2.0, 9.0, 8)
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": tiny.THETA,
    "factor": 8.0,
    "original_max_position_embeddings": LENGTH,
    "short_factor": SHORT.tolist(),
    "long_factor": LONG.tolist(),
}
LONGROPE_MULTIPLIER = np.sqrt(1 + np.log(8) / np.log(LENGTH))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}
    configs: dict[str, dict[str, Any]] = {
        "llama": {},
        "phi3": {
            "hidden_size": tiny.HEADS * tiny.HEAD_DIM,
            "original_max_position_embeddings": LENGTH,
            "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.75},
        },
        # Pairs side by side; its config has no head_dim.
        "cohere": {"hidden_size": tiny.HEADS * tiny.HEAD_DIM},
    }

    def find(family: str) -> Path:
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            made[family] = tiny.save(directory, family=family, **configs[family])
        return made[family]

    return find


def rope(parameters: dict[str, Any], **changes: Any) -> HuggingFaceRope:
    return HuggingFaceRope(parameters=parameters, original_context=LENGTH, **changes)


def error(logits: np.ndarray, reference: np.ndarray) -> float:
    assert logits.shape == reference.shape
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


def own_logits(checkpoint: Path, parameters: dict[str, Any], ids: np.ndarray) -> np.ndarray:
    """transformers' unmodified model, one forward without a cache."""
    import torch

    model = tiny.load(checkpoint, parameters)
    with torch.inference_mode():
        return model(torch.from_numpy(ids[None]), use_cache=False).logits.numpy()


@pytest.mark.parametrize("family", ["llama", "phi3", "cohere"])
@pytest.mark.parametrize("parameters", [PLAIN, YARN], ids=["plain", "yarn"])
def test_near_the_beginning_every_rotary_is_transformers_own(checkpoints, family, parameters):
    if family == "phi3":
        parameters = {**parameters, "partial_rotary_factor": 0.75}
    expected = own_logits(checkpoints(family), parameters, IDS[:90])
    reference = TorchReference(checkpoints(family), rope(parameters))
    for rotary in Rotary:
        assert error(reference.logits(IDS[:90], rotary=rotary), expected) < 1e-5
    assert error(reference.logits(IDS[:90], rotary=Rotary.UNMODIFIED), expected) == 0
    other = PLAIN if parameters is not PLAIN else {**PLAIN, "rope_theta": 1e6}
    assert error(own_logits(checkpoints(family), other, IDS[:90]), expected) > 1e-2


def random_cache(length: int) -> Cache:
    """Keys and values as wide as the model's own: its attention is sharp over them."""
    generator = np.random.default_rng(8)
    shape = (1, tiny.KV_HEADS, length, tiny.HEAD_DIM)
    arrays = [2 * generator.standard_normal(shape, dtype=np.float32) for _ in range(4)]
    return Cache(keys=tuple(arrays[:2]), values=tuple(arrays[2:]))


@pytest.mark.parametrize("length", [1, 1000, 100_003])
def test_far_out_exact_is_the_float64_rotation_and_unmodified_is_not(checkpoints, length):
    """At 100 thousand tokens transformers' angles are off by 4e-3 rad, float64's by nothing."""
    table = plain_table().astype(np.float32)
    reference = TorchReference(checkpoints("llama"), rope(PLAIN, inv_freq=table))
    oracle = Float64Llama(checkpoints("llama"), table.astype(np.float64))
    cache, ids = random_cache(length), IDS[:13]
    expected = oracle.logits(ids, cache)[None]
    assert error(reference.probe(cache, ids), expected) < 1e-5
    unmodified = error(reference.probe(cache, ids, rotary=Rotary.UNMODIFIED), expected)
    assert unmodified > 1e-3 if length > 100_000 else unmodified < 1e-3


def test_cos_and_sin_are_exact_at_every_position(checkpoints):
    """Against 50 digits of the stored float32 table; FORMULAS promises 1e-6 rad to 2^33."""
    import mpmath
    import torch

    reference = TorchReference(checkpoints("llama"), rope(YARN))
    rotary = reference._rotary[Rotary.EXACT]
    positions = [0, 1, 4095, 131071, 2**24 + 1, 2**33 - 1]
    cos, sin = rotary(torch.zeros(1, dtype=torch.float64), torch.tensor([positions]))
    with mpmath.workdps(50):
        for row, position in enumerate(positions):
            angles = [position * mpmath.mpf(float(f)) for f in reference.inv_freq] * 2
            for got, function in ((cos, mpmath.cos), (sin, mpmath.sin)):
                expected = [float(function(angle)) * reference.multiplier for angle in angles]
                np.testing.assert_allclose(got[0, row].numpy(), expected, rtol=0, atol=1.5e-6)


def test_a_table_that_is_given_is_used_by_exact_alone(checkpoints):
    table = (plain_table() / 3).astype(np.float32)
    reference = TorchReference(checkpoints("llama"), rope(YARN, inv_freq=table))
    multiplier = 0.1 * np.log(16) + 1
    oracle = Float64Llama(checkpoints("llama"), table.astype(np.float64), multiplier)
    assert error(reference.logits(IDS[:50]), oracle.logits(IDS[:50])[None]) < 1e-5
    expected = own_logits(checkpoints("llama"), YARN, IDS[:50])
    for rotary in (Rotary.OWN_TABLE, Rotary.UNMODIFIED):
        assert error(reference.logits(IDS[:50], rotary=rotary), expected) < 1e-5
    assert error(reference.logits(IDS[:50]), expected) > 1e-2
    assert reference.multiplier == pytest.approx(multiplier, rel=1e-15)


def test_the_table_is_told_as_transformers_has_it(checkpoints):
    reference = TorchReference(checkpoints("llama"), rope(PLAIN))
    assert reference.inv_freq.dtype == np.float32
    np.testing.assert_allclose(reference.inv_freq, plain_table(), rtol=3e-7)
    assert (reference.layers, reference.vocab, reference.multiplier) == (2, tiny.VOCAB, 1.0)


def test_a_table_of_another_length_is_another_model(checkpoints):
    table = plain_table(12).astype(np.float32)
    with pytest.raises(UserError, match="the package has 6 frequencies, the reference 8"):
        TorchReference(checkpoints("llama"), rope(PLAIN, inv_freq=table))


@pytest.mark.parametrize(("long_table", "divisors"), [(False, SHORT), (True, LONG)])
def test_longrope_keeps_one_table_on_both_sides_of_the_trained_context(
    checkpoints, long_table, divisors
):
    """Left alone, transformers goes by the longest position of each call."""
    reference = TorchReference(checkpoints("llama"), rope(LONGROPE, long_table=long_table))
    oracle = Float64Llama(checkpoints("llama"), plain_table() / divisors, LONGROPE_MULTIPLIER)
    other = Float64Llama(
        checkpoints("llama"), plain_table() / (SHORT + LONG - divisors), LONGROPE_MULTIPLIER
    )
    np.testing.assert_allclose(reference.inv_freq, plain_table() / divisors, rtol=5e-7)
    assert reference.multiplier == pytest.approx(LONGROPE_MULTIPLIER, rel=1e-12)
    for length in (20, 150, 33):
        ids = IDS[:length]
        expected = oracle.logits(ids)[None]
        assert error(other.logits(ids)[None], expected) > 1e-2
        for rotary in Rotary:
            assert error(reference.logits(ids, rotary=rotary), expected) < 1e-5


@pytest.mark.parametrize(("long_table", "divisors"), [(False, SHORT), (True, LONG)])
def test_the_package_s_trained_context_goes_before_phi3_s_own(tmp_path, long_table, divisors):
    """phi3's config class writes 4096 beside rope_parameters and would go by that."""
    plain = {**PLAIN, "partial_rotary_factor": 0.75}
    hidden = tiny.HEADS * tiny.HEAD_DIM
    checkpoint = tiny.save(tmp_path, family="phi3", hidden_size=hidden, rope_parameters=plain)
    assert load_config(checkpoint).original_max_position_embeddings == 4096
    lists = {"short_factor": SHORT[:6].tolist(), "long_factor": LONG[:6].tolist()}
    parameters = {**LONGROPE, **lists, "partial_rotary_factor": 0.75}
    reference = TorchReference(checkpoint, rope(parameters, long_table=long_table))
    np.testing.assert_allclose(reference.inv_freq, plain_table(12) / divisors[:6], rtol=5e-7)
    assert reference.multiplier == pytest.approx(LONGROPE_MULTIPLIER, rel=1e-12)


def test_rows_that_are_asked_for_are_those_of_the_whole(checkpoints):
    reference = TorchReference(checkpoints("llama"), rope(PLAIN))
    every = reference.logits(IDS)
    assert every.shape == (1, 150, tiny.VOCAB) and every.dtype == np.float32
    np.testing.assert_allclose(
        reference.logits(IDS, rows=[0, 7, 149]), every[:, [0, 7, 149]], rtol=0, atol=1e-5
    )


def test_the_model_s_own_cache_is_rotated_keys_and_values(checkpoints):
    reference = TorchReference(checkpoints("llama"), rope(YARN))
    cache = reference.own_cache(IDS[:40])
    table = reference.inv_freq.astype(np.float64)
    oracle = Float64Llama(checkpoints("llama"), table, reference.multiplier)
    assert cache.length == 40
    for layer, (keys, values) in enumerate(oracle.cache(IDS[:40])):
        assert error(cache.keys[layer][0], keys) < 1e-5
        assert error(cache.values[layer][0], values) < 1e-5
    after = reference.probe(cache, IDS[40:60])
    assert error(after, reference.logits(IDS[:60])[:, 40:]) < 1e-5


def test_a_probe_leaves_its_cache_as_it_was(checkpoints):
    reference = TorchReference(checkpoints("llama"), rope(PLAIN))
    cache = random_cache(50)
    kept = [array.copy() for array in (*cache.keys, *cache.values)]
    first = reference.probe(cache.first(30), IDS[:5])
    np.testing.assert_array_equal(reference.probe(cache.first(30), IDS[:5]), first)
    for array, before in zip((*cache.keys, *cache.values), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_probes_that_cannot_be_are_refused(checkpoints):
    reference = TorchReference(checkpoints("llama"), rope(PLAIN))
    with pytest.raises(UserError, match="a probe of 65 tokens: give at most 64"):
        reference.probe(random_cache(3), np.zeros(65, np.int64))
    one = random_cache(3)
    with pytest.raises(UserError, match="the cache has 1 layers, the reference 2"):
        reference.probe(Cache(keys=one.keys[:1], values=one.values[:1]), IDS[:2])


def test_weights_are_rounded_to_the_package_s_precision(checkpoints, tmp_path):
    from safetensors.numpy import load_file, save_file

    rounded = tiny.copy(checkpoints("llama"), tmp_path / "rounded")
    tensors = load_file(rounded / "model.safetensors")
    half = {name: array.astype(np.float16).astype(np.float32) for name, array in tensors.items()}
    save_file(half, rounded / "model.safetensors", {"format": "pt"})
    expected = TorchReference(rounded, rope(PLAIN)).logits(IDS)
    reference = TorchReference(checkpoints("llama"), rope(PLAIN), weights="fp16")
    np.testing.assert_array_equal(reference.logits(IDS), expected)
    assert error(TorchReference(checkpoints("llama"), rope(PLAIN)).logits(IDS), expected) > 1e-5


def test_a_low_precision_is_computed_in(checkpoints):
    settings = {"weights": "bf16", "compute": "bf16"}
    low = TorchReference(checkpoints("llama"), rope(PLAIN), **settings).logits(IDS)
    assert low.dtype == np.float32
    assert not (low.view(np.uint32) & 0xFFFF).any()  # bfloat16 numbers
    exact = TorchReference(checkpoints("llama"), rope(PLAIN), weights="bf16").logits(IDS)
    assert 1e-3 < error(low, exact) < 0.2


def test_layers_are_told_when_they_are_done(checkpoints):
    reference = TorchReference(checkpoints("llama"), rope(PLAIN))
    done: list[int] = []
    reference.watch(lambda: done.append(1))
    reference.logits(IDS[:3])
    reference.probe(random_cache(4), IDS[:3])
    assert len(done) == 4  # two forwards of two layers


def scaling(method: str, **parameters: Any) -> Scaling:
    return Scaling(
        method=method, parameters=parameters, factor=4.0, original_context=LENGTH, target=256
    )


def config(own: dict[str, Any] | None, **entries: Any) -> Any:
    values = {"rope_parameters": own, "hidden_size": 64, "num_attention_heads": 4, **entries}
    return SimpleNamespace(**values)


def test_base_and_share_come_from_the_checkpoint():
    own = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    found = hugging_face_rope(scaling("linear"), config(own))
    assert found == rope(
        {
            "rope_type": "linear",
            "rope_theta": 5e5,
            "partial_rotary_factor": 0.5,
            "factor": 4.0,
        },
        long_table=True,
    )


@pytest.mark.parametrize(
    ("method", "given", "share"),
    [
        ("proportional", {}, 0.25),  # the checkpoint's own
        ("proportional", {"partial_rotary_factor": 0.5}, 0.5),
        ("linear", {}, None),  # there it is no partial rotation
    ],
)
def test_a_proportional_checkpoint_s_share_is_no_partial_rotation(method, given, share):
    own = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    found = hugging_face_rope(scaling(method, **given), config(own)).parameters
    assert found.get("partial_rotary_factor") == share


def test_a_head_dimension_that_no_config_states_is_computed():
    assert head_dimension(config(None)) == 16
    assert head_dimension(config(None, head_dim=None)) == 16
    assert head_dimension(config(None, head_dim=80)) == 80


@pytest.mark.parametrize(
    "text", ["{}", "{", '{"model_type": "nothing"}', None], ids=["empty", "broken", "type", "no"]
)
def test_a_directory_that_transformers_cannot_read_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read by transformers: .* give the checkpoint"):
        load_config(tmp_path)


def test_a_checkpoint_without_weights_is_refused(checkpoints, tmp_path):
    copy = tiny.copy(checkpoints("llama"), tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be loaded by transformers: .*safetensors"):
        TorchReference(copy, rope(PLAIN))


class Squared:
    """A rotation that is not by position × frequency."""

    attention_scaling = 1.0

    def __init__(self) -> None:
        import torch

        self.inv_freq = torch.tensor([1.0, 0.5])

    def __call__(self, x: Any, position_ids: Any) -> tuple[Any, Any]:
        import torch

        angle = position_ids[..., None] * self.inv_freq.square()
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()


def test_a_rotation_of_another_kind_is_refused():
    with pytest.raises(UserError, match="Squared does not rotate by position × frequency"):
        torch_reference._exact_rotary(Squared(), None)


def test_a_model_without_one_rotary_module_for_all_layers_is_refused():
    import torch

    with pytest.raises(UserError, match="Linear has 0 rotary modules"):
        torch_reference.rotary_owner(torch.nn.Linear(1, 1))
