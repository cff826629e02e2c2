"""onnxruntime-genai's interface on graphs of other decoders and of other exporters.

The oracle is transformers' own model: one forward over the whole text, without a cache. The graph
runs in a stock onnxruntime, as onnxruntime-genai calls it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ctx_export.core.manifest import Manifest
from ctx_export.core.recipe import Recipe
from ctx_export.passes.verify import RewriteError
from ctx_export.pipeline import export_source, load_source
from ctx_export.validate.genai_check import before_conversion, checked
from tests.support.decoders import DECODERS, save_decoder
from tests.support.families import FAMILIES, save_checkpoint
from tests.support.measuring import Oracle
from tests.support.peer_files import peer_files

TAIL = 3  # tokens after the prompt, one by one
FULL = ("llama-80", "qwen2-80", "phi3-80")
OTHERS = ("gpt_neox", "gptj", "cohere", "qwen3_moe")
WINDOWED = ("mistral", "gemma2", "gemma3_text", "gpt_oss")
FILES = ("llama/genai-fp32-cpu", "llama/optimum-past", "qwen2/genai-fp32-cpu", "phi/optimum-past")


def exported(model: Path, out: Path, **options: Any) -> Path:
    recipe = Recipe(
        model=str(model),
        method="yarn",
        target=256,
        engine="none",
        validate=False,
        output=out,
        **options,
    )
    return export_source(load_source(recipe), recipe).output


def logits_of(package: Path, ids: np.ndarray) -> np.ndarray:
    """Logits [1 + TAIL, V] after all but the last tokens and after each of those."""
    manifest = Manifest.load(package)
    session = ort.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    past = {
        t.name: np.zeros((1, t.shape[1], 0, t.shape[3]), np.float32)
        for role in ("past_key", "past_value")
        for t in manifest.of_role(role)
    }
    names = [value.name for value in session.get_outputs()]
    rows, start = [], 0
    for end in range(len(ids) - TAIL, len(ids) + 1):
        feeds = {"input_ids": ids[None, start:end], "attention_mask": np.ones((1, end), np.int64)}
        outputs = dict(zip(names, session.run(names, {**feeds, **past}), strict=True))
        rows.append(outputs.pop("logits")[0, 0])
        past = {n.replace("present", "past_key_values"): v for n, v in outputs.items()}
        start = end
    return np.stack(rows)


def assert_close(package: Path, checkpoint: Path, name: str) -> None:
    """At 150 to 219 tokens of 64 that the models were made for."""
    oracle = Oracle(name, checkpoint)
    theirs = oracle.logits("yarn")[-TAIL - 1 :]
    ours = logits_of(package, oracle.ids)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("name", FULL)
def test_families_with_full_caches(name, tmp_path):
    checkpoint = save_checkpoint(FAMILIES[name], tmp_path / "checkpoint")
    assert_close(exported(checkpoint, tmp_path / "out", io="genai"), checkpoint, name)


@pytest.mark.parametrize("name", OTHERS)
def test_decoders_of_other_layouts(name, tmp_path):
    checkpoint = save_decoder(DECODERS[name], tmp_path / "checkpoint")
    assert_close(exported(checkpoint, tmp_path / "out", io="genai"), checkpoint, name)


@pytest.mark.parametrize("name", FILES)
def test_files_that_other_tools_wrote(name, tmp_path):
    file = peer_files()[name]
    options = {"io": "genai", "reference": str(file.checkpoint)}
    package = exported(file.copied(tmp_path / "file"), tmp_path / "out", **options)
    assert_close(package, file.checkpoint, name)


@pytest.mark.parametrize("name", WINDOWED)
def test_layers_with_windows_of_their_own_keep_every_token(name, tmp_path):
    """Their windows are masks over caches that grow as all others do."""
    checkpoint = save_decoder(DECODERS[name], tmp_path / "checkpoint")
    package = exported(checkpoint, tmp_path / "out", io="genai", max_chunk=32)
    caches = Manifest.load(package).layers
    assert {cache.policy for cache in caches} == {"full"}
    assert any(cache.window for cache in caches)
    assert_close(package, checkpoint, name)


def test_a_converted_graph_that_computes_something_else_is_not_passed(tmp_path):
    """The check of an export, with logits that a rounding error and a tenth of their scale off."""
    family = FAMILIES[FULL[0]]
    checkpoint = save_checkpoint(family, tmp_path / "checkpoint")
    native = exported(checkpoint, tmp_path / "native")
    before = before_conversion(native, Manifest.load(native))
    assert before is not None
    package = exported(checkpoint, tmp_path / "out", io="genai")
    manifest, told = checked(package, Manifest.load(package), before)
    assert manifest.validation["interface"]["max_error"] <= 1e-5
    assert "growing and shared" in told
    scale = float(np.abs(before.logits[-1]).max())
    wrong = replace(before, logits=(*before.logits[:-1], before.logits[-1] + scale / 10))
    with pytest.raises(RewriteError, match=r"differ by .* more than 0\.0001"):
        checked(package, manifest, wrong)
    damaged = ir.load(package / "model.onnx")
    mask = next(value for value in damaged.graph.inputs if value.name == "attention_mask")
    seen = next(n for n in damaged.graph if n.op_type == "Sub")
    seen.replace_input_with(1, seen.inputs[0])  # nothing was seen before
    assert mask.uses()
    ir.save(damaged, package / "damaged.onnx")
    (package / "damaged.onnx").replace(package / "model.onnx")
    with pytest.raises(RewriteError):
        checked(package, manifest, before)
