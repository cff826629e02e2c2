"""Scales of a quantised cache. Oracles: rotation at many positions, the model's own keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctx_export import demo
from ctx_export.build.calibration import (
    DEFAULT_TEXT,
    MOST_TOKENS,
    calibrated,
    calibration_tokens,
    key_magnitude,
)
from ctx_export.core.cache_type import CACHE_TYPES
from ctx_export.core.errors import UserError
from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.progress import SilentProgress
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.checkpoint import Checkpoint, read_checkpoint
from ctx_export.ops.reference import rotate
from ctx_export.runtime.text import TextCodec
from ctx_export.validate import memory
from ctx_export.validate.pairwise import PairwiseReference
from ctx_export.validate.turning import Heads
from ctx_export.validate.visibility import causal
from tests.support import tiny

DEMO = Path(demo.__file__).parent


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pairs", [8, 3])
def test_a_rotated_key_is_bounded_by_its_pairs_wherever_it_is(interleaved, pairs):
    key = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    heads = Heads(head_dim=16, count=pairs, interleaved=interleaved)
    bound = key_magnitude(key, heads, 1.5)
    frequencies = np.linspace(0.9, 1.1, pairs)[None]
    met = np.zeros(2)
    for position in range(2000):
        turned = rotate(
            key[None].astype(np.float64),
            np.full((1, 5), position),
            frequencies,
            np.array([1.5]),
            rotary_dim=2 * pairs,
            interleaved=interleaved,
        )
        met = np.maximum(met, np.abs(turned[0]).max(axis=(1, 2)))
    assert (met <= bound * 1.0001).all() and (met > 0.99 * bound).all()
    np.testing.assert_array_equal(key_magnitude(key, heads, None), np.abs(key).max(axis=(1, 2)))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return read_checkpoint(tiny.save(tmp_path_factory.mktemp("calibration") / "checkpoint"))


def planned(checkpoint: Checkpoint, **options: object) -> Plan:
    recipe = Recipe(model=str(checkpoint.directory), **options)
    return make_plan(checkpoint.spec, recipe)


@pytest.mark.parametrize("kind", CACHE_TYPES)
@pytest.mark.parametrize("method", ["none", "dynamic-ntk"])
def test_scales_put_the_largest_magnitude_below_the_largest_number(checkpoint, kind, method):
    """Within the trained context dynamic-ntk has plain frequencies and keeps keys unrotated."""
    target = {"target": 128} if method == "dynamic-ntk" else {}
    plan = planned(checkpoint, method=method, kv_cache_dtype=kind, **target)
    assert plan.scales is None
    scales = calibrated(plan, checkpoint, None, SilentProgress()).scales
    assert scales is not None and len(scales) == tiny.LAYERS
    frequencies = tiny.THETA ** (-np.arange(8) / 8)
    model = PairwiseReference(
        checkpoint.directory, [causal] * tiny.LAYERS, lambda length: (frequencies, 1.0)
    )
    tokens = calibration_tokens(checkpoint, None)
    assert len(tokens) == MOST_TOKENS  # random ones: there is no tokenizer
    pieces = tokens.reshape(-1, tiny.ORIGINAL_CONTEXT)
    pasts = [model.own_past(piece) for piece in pieces]
    room = 1.0 if kind == "int8" else 2.0
    largest = 127 if kind == "int8" else 448
    for layer, own in enumerate(scales):
        values = np.concatenate([past.values[layer][0] for past in pasts], axis=1)
        np.testing.assert_allclose(
            np.array(own.value) * largest, room * np.abs(values).max(axis=(1, 2)), rtol=1e-5
        )
        keys = np.concatenate([past.keys[layer][0] for past in pasts], axis=1).astype(np.float64)
        norm = np.hypot(keys[..., :8], keys[..., 8:]) if method == "none" else np.abs(keys)
        np.testing.assert_allclose(
            np.array(own.key) * largest, room * norm.max(axis=(1, 2)), rtol=1e-5
        )


def test_a_head_without_values_has_scale_1_and_damage_is_told(tmp_path, checkpoint):
    import torch
    from safetensors.torch import load_file, save_file

    damaged = tmp_path / "checkpoint"
    tiny.copy(checkpoint.directory, damaged)
    weights = load_file(damaged / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.weight"
    weights[name][: tiny.HEAD_DIM] = 0
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    own = read_checkpoint(damaged)
    plan = planned(own, method="none", kv_cache_dtype="int8")
    scales = calibrated(plan, own, None, SilentProgress()).scales
    assert scales is not None and scales[1].value[0] == 1.0 and scales[1].value[1] != 1.0
    weights[name][0] = torch.inf
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="keys or values have NaN or Inf"):
        calibrated(plan, own, None, SilentProgress())


class Counted(SilentProgress):
    """Keeps the updates of the stage "calibrating the cache"."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.updates: list[tuple[int, int]] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def update(self, done: int, total: int) -> None:
        assert self.stages[-1] == "calibrating the cache"
        self.updates.append((done, total))


def test_scales_of_random_tokens_are_told(checkpoint, caplog):
    plan = planned(checkpoint, method="none", kv_cache_dtype="int8")
    calibrated(plan, checkpoint, None, SilentProgress())
    (told,) = caplog.messages
    assert told.startswith(f"{checkpoint.directory} has no tokenizer.json: the cache's scales are")


def test_what_a_plan_is_calibrated_on_is_kept(tmp_path, caplog):
    own = read_checkpoint(DEMO)
    plan = planned(own, method="none", kv_cache_dtype="int8")
    text = tmp_path / "book.txt"
    text.write_text("The harbour was quiet before dawn. " * 5)
    tokens = len(calibration_tokens(own, text))
    made = calibrated(plan, own, text, SilentProgress())
    assert made.calibration == f"{tokens} tokens of book.txt"
    made = calibrated(plan, own, None, SilentProgress())
    tokens = len(calibration_tokens(own, None))
    assert made.calibration == f"{tokens} tokens of a built-in text"
    assert not caplog.messages


def test_every_layer_is_progress(checkpoint):
    plan, progress = planned(checkpoint, method="none", kv_cache_dtype="int8"), Counted()
    calibrated(plan, checkpoint, None, progress)
    total = MOST_TOKENS // tiny.ORIGINAL_CONTEXT * tiny.LAYERS
    assert progress.updates == [(n, total) for n in range(1, total + 1)]


def test_a_model_too_big_for_memory_is_calibrated_layer_by_layer(checkpoint, monkeypatch):
    plan = planned(checkpoint, method="none", kv_cache_dtype="int8")
    whole = calibrated(plan, checkpoint, None, SilentProgress())
    monkeypatch.setattr(memory, "MEMORY_SHARE", 1e-9)
    assert calibrated(plan, checkpoint, None, SilentProgress()) == whole


def test_a_model_without_a_reference_names_the_way_out(checkpoint):
    plan = planned(checkpoint, method="none", kv_cache_dtype="int8")
    unknown = replace(plan, caches=tuple(replace(c, rule="unheard-of") for c in plan.caches))
    with pytest.raises(UserError, match=r"unheard-of .*; --kv-cache-dtype auto needs none"):
        calibrated(unknown, checkpoint, None, SilentProgress())


def test_a_plan_of_another_cache_is_left_alone(checkpoint):
    plan = planned(checkpoint, method="none")
    assert calibrated(plan, checkpoint, None, SilentProgress()) is plan


def test_the_text_is_the_user_s_or_the_one_that_comes_along(tmp_path):
    own = read_checkpoint(DEMO)
    codec = TextCodec.load(DEMO, own.spec.bos_token_id)
    default = codec.encode(DEFAULT_TEXT.read_text(encoding="utf-8"))
    assert calibration_tokens(own, None).tolist() == default[:MOST_TOKENS]
    assert len(default) > 500
    text = tmp_path / "text.txt"
    text.write_text("The harbour was quiet before dawn. " * 5)
    assert calibration_tokens(own, text).tolist() == codec.encode(text.read_text())
    words = "The harbour was quiet before dawn. " * 5000
    text.write_text(words)
    assert calibration_tokens(own, text).tolist() == codec.encode(words)[:MOST_TOKENS]
    text.write_text("Short.")
    with pytest.raises(UserError, match="give a text of at least 16"):
        calibration_tokens(own, text)
    text.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="cannot be read as text"):
        calibration_tokens(own, text)


def test_scales_go_into_the_manifest(checkpoint):
    plan = planned(checkpoint, method="none", kv_cache_dtype="fp8")
    made = calibrated(plan, checkpoint, None, SilentProgress())
    entry = made.kv_cache_json()
    assert entry is not None and entry["dtype"] == "float8e4m3fn"
    assert entry["calibration"] == made.calibration == f"{MOST_TOKENS} random tokens"
    assert replace(made, scales=None, calibration=None) == plan
    assert made.scales is not None
    assert [layer["key"] for layer in entry["layers"]] == [s.key for s in made.scales]
