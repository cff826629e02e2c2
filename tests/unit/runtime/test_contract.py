"""What a session needs of a manifest. Oracle: rows written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo, Manifest
from ctx_export.runtime.contract import Contract
from tests.unit.runtime.fakes import manifest

RING = CacheInfo(policy="bounded", sinks=2, window=5, capacity=10, keys="rotated")


def test_layers_pair_past_with_present() -> None:
    contract = Contract.from_manifest(manifest(layers=2, kv_heads=3, head_dim=4))
    assert [
        (layer.past_key, layer.present_key, layer.past_value, layer.present_value)
        for layer in contract.layers
    ] == [
        (
            f"past_key_values.{i}.key",
            f"present.{i}.key",
            f"past_key_values.{i}.value",
            f"present.{i}.value",
        )
        for i in (0, 1)
    ]
    assert {(layer.kv_heads, layer.head_dim, layer.slots) for layer in contract.layers} == {
        (3, 4, None)
    }
    assert contract.rope_length is None and not contract.bounded


def test_slots_of_a_ring_are_its_capacity_whatever_the_graph_calls_them() -> None:
    stated = manifest(cache=RING)
    symbolic = tuple(
        replace(t, shape=("batch", 1, "slots", 1)) if t.layer >= 0 else t for t in stated.io
    )
    for made in (stated, replace(stated, io=symbolic)):
        contract = Contract.from_manifest(made)
        assert contract.bounded and contract.layers[0].slots == 10


def test_a_quantised_cache_s_scales_go_with_its_layers() -> None:
    layers = [{"key": [0.5, 1.0], "value": [2.0, 3.0]}, {"key": [4.0, 5.0], "value": [6.0, 7.0]}]
    stated = manifest(layers=2, kv_heads=2)
    quantised = tuple(replace(t, dtype="int8") if t.layer >= 0 else t for t in stated.io)
    stated = replace(stated, io=quantised, kv_cache={"dtype": "int8", "layers": layers})
    contract = Contract.from_manifest(stated)
    found = [codec for layer in contract.layers for codec in layer.codecs]
    assert [codec.dtype for codec in found] == ["int8"] * 4
    assert [codec.scale.tolist() for codec in found if codec.scale is not None] == [
        [0.5, 1.0],
        [2.0, 3.0],
        [4.0, 5.0],
        [6.0, 7.0],
    ]
    for wrong, message in (
        (None, "kv_cache lacks 'layers': export again"),
        ({"layers": [{"key": [1.0, 1.0]}]}, "kv_cache lacks 'value'"),
        ({"layers": layers[:1]}, "scales of 1 layers and"),
        ({"layers": [layers[0], {**layers[1], "key": [1.0]}]}, r"2 layers and \[1, 2\] heads"),
    ):
        with pytest.raises(UserError, match=message):
            Contract.from_manifest(replace(stated, kv_cache=wrong))


def without(stated: Manifest, role: str) -> Manifest:
    return replace(stated, io=tuple(t for t in stated.io if t.role != role))


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"role seen: sessions need .* without --io genai"):
        Contract.from_manifest(without(manifest(), "seen"))
    with pytest.raises(UserError, match="past and present caches do not pair up"):
        Contract.from_manifest(without(manifest(), "present_value"))
    stated = manifest()
    flat = tuple(replace(t, shape=("batch", "slots")) if t.layer >= 0 else t for t in stated.io)
    with pytest.raises(UserError, match=r"past_key_values\.0\.key has the shape \['batch', 'slo"):
        Contract.from_manifest(replace(stated, io=flat))
