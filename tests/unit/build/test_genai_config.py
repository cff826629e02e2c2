"""genai_config.json beside the manifest it is made from; values written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ctx_export import demo
from ctx_export.build.genai_config import genai_config
from ctx_export.core.manifest import Manifest
from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.checkpoint import read_checkpoint


def planned(**options) -> Plan:
    spec = read_checkpoint(demo.path()).spec
    return make_plan(spec, Recipe(method="yarn", target=4096, io="genai", **options))


def manifest_of(plan: Plan, eos: tuple[int, ...] = (2, 5), bos: int | None = 1) -> Manifest:
    spec = plan.spec
    model = {
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "layers": spec.layers,
        "vocab": spec.vocab,
        "bos_token_id": bos,
        "eos_token_ids": list(eos),
    }
    return Manifest(
        model=model,
        method=plan.method,
        scaling={},
        factor=plan.factor,
        max_context=plan.max_context,
        max_batch=plan.max_batch,
        max_chunk=plan.max_chunk,
        layers=plan.caches,
        precision=plan.precision,
        io=plan.package_io,
        weights={},
        generator={},
        io_contract="genai",
    )


def test_sizes_names_and_limits_are_the_package_s():
    plan = planned()
    config = genai_config(manifest_of(plan), plan, {"pad_token_id": 0})
    model, decoder = config["model"], config["model"]["decoder"]
    assert model["type"] == "decoder"
    assert (model["context_length"], model["vocab_size"]) == (4096, 2048)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2, 5], 0)
    assert (decoder["head_size"], decoder["hidden_size"]) == (64, 256)
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (4, 2)
    assert decoder["num_hidden_layers"] == 5
    assert decoder["inputs"]["past_value_names"] == "past_key_values.%d.value"
    assert decoder["outputs"]["present_key_names"] == "present.%d.key"
    assert "position_ids" not in decoder["inputs"]
    search = {"do_sample": False, "max_length": 4096, "num_beams": 1}
    assert config["search"] == {**search, "past_present_share_buffer": True, "chunk_size": 1024}


def test_prompts_of_a_batch_are_not_cut():
    """onnxruntime-genai takes a batch's prompts apart in chunks of all its tokens together."""
    plan = planned(max_batch=2)
    assert "chunk_size" not in genai_config(manifest_of(plan), plan, {})["search"]


@pytest.mark.parametrize(
    ("stated", "ends", "chosen"),
    [(7, (2,), 7), (None, (2, 5), 2), (-1, (2,), 2), (2048, (2,), 2), (None, (), 0)],
)
def test_the_id_that_pads_is_in_the_vocabulary(stated, ends, chosen):
    plan = planned()
    told = genai_config(manifest_of(plan, eos=ends, bos=None), plan, {"pad_token_id": stated})
    assert told["model"]["pad_token_id"] == chosen
    assert "bos_token_id" not in told["model"]
    assert ("eos_token_id" in told["model"]) == bool(ends)


def test_a_plan_shows_what_the_package_will_have():
    plan = planned()
    assert [t.name for t in plan.package_io[:3]] == [
        "input_ids",
        "attention_mask",
        "past_key_values.0.key",
    ]
    assert "attention_mask int64['batch', 'total']" in plan.describe()
    told = plan.to_json()
    assert told["io_contract"] == "genai"
    assert len(told["io"]) == 2 + 10 + 1 + 10
    native = replace(plan, io_contract="native")
    assert native.package_io == native.io
