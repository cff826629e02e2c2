"""Packages of the demo: a stock onnxruntime runs them, weights are shared, quality is extended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from ctx_export import demo
from ctx_export.core.recipe import Recipe
from ctx_export.pipeline import export_source, load_source
from ctx_export.runtime.session import open_session

STOCK = """
import sys
import numpy as np
import onnxruntime

package, ids_file, out = sys.argv[1:]
ids = np.load(ids_file)
batch, tokens = ids.shape
session = onnxruntime.InferenceSession(package + "/model.onnx", providers=["CPUExecutionProvider"])
feeds = {
    "input_ids": ids,
    "seen": np.zeros(batch, np.int64),
    "new": np.full(batch, tokens),
    "logit_rows": np.tile(np.arange(tokens), (batch, 1)),
}
kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
for value in session.get_inputs():
    if value.name.startswith("past_key_values"):
        shape = (batch, value.shape[1], tokens, value.shape[3])
        feeds[value.name] = np.zeros(shape, kinds[value.type])
logits = session.run(["logits"], feeds)[0]
assert not any(name.split(".")[0] == "ctx_export" for name in sys.modules)
maps = open("/proc/self/maps").read()
assert "ctx_plugins" not in maps
np.save(out, logits.astype(np.float32))
"""


def export_demo(out: Path, precision: str, method: str = "yarn", cache: str = "auto") -> Path:
    recipe = Recipe(
        method=method,
        target=1024,
        precision=precision,
        kv_cache_dtype=cache,
        engine="none",
        validate=False,
        output=out,
        max_batch=2,
    )
    return export_source(load_source(recipe), recipe).output


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packages")
    return {name: export_demo(root / name, name) for name in ("fp32", "fp16", "bf16")}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_stock_onnxruntime_gives_the_session_s_logits(packages, tmp_path, precision):
    package = packages[precision]
    ids = np.random.default_rng(1).integers(3, 2048, (2, 700))
    np.save(tmp_path / "ids.npy", ids)
    script = tmp_path / "stock.py"
    script.write_text(STOCK)
    subprocess.run(
        [sys.executable, script, package, tmp_path / "ids.npy", tmp_path / "logits.npy"],
        check=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    stock = np.load(tmp_path / "logits.npy")
    with open_session(package, batch=2, chunk=128) as session:
        ours = session.feed(ids)
    assert stock.shape == ours.shape == (2, 700, 2048)
    # Chunks change the order of float32 sums; float16 rounds cached keys and values once more.
    tolerance = {"fp32": 1e-4, "fp16": 2e-2}[precision] * np.abs(stock).max()
    np.testing.assert_allclose(ours, stock, rtol=0, atol=tolerance)


def test_weights_of_an_unchanged_precision_are_the_checkpoint_s_own_file(packages):
    package = packages["bf16"]
    manifest = json.loads((package / "manifest.json").read_text())
    original = demo.path() / "model.safetensors"
    if manifest["weights"]["storage"] == "linked":
        assert (package / original.name).samefile(original)
    assert (package / original.name).read_bytes() == original.read_bytes()
    own = [path for path in package.iterdir() if path.name not in (original.name,)]
    assert sum(path.stat().st_size for path in own) < 1 << 20


def test_every_operator_is_a_ctx_node_with_a_function_of_standard_operators(packages):
    model = onnx.load(packages["fp32"] / "model.onnx", load_external_data=False)
    onnx.checker.check_model(packages["fp32"] / "model.onnx", full_check=True)
    kinds = [node.op_type for node in model.graph.node if node.domain == "ctx"]
    assert kinds == ["SinkWindowAttention"] * 5
    assert {function.name for function in model.functions} == set(kinds)
    assert {node.domain for function in model.functions for node in function.node} == {""}


def pass_key_prompt(tokenizer, length: int, depth: float, key: str) -> list[int]:
    """`length` tokens of held-out text with the key told at `depth` and asked for at the end."""
    told = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    told = tokenizer.encode(told, add_special_tokens=False).ids
    asked = tokenizer.encode("\nWhat is the pass key? The pass key is").ids
    filler = tokenizer.encode(demo.heldout_text()[: 8 * length], add_special_tokens=False).ids
    room = length - len(told) - len(asked) - 1
    at = int(depth * room)
    return [1, *filler[:at], *told, *filler[at:room], *asked]


def answer(session, tokenizer, prompt: list[int]) -> str:
    session.reset()
    logits = session.feed(np.array([prompt]), logits="last")
    tokens = []
    for _ in range(6):
        tokens.append(int(logits[0].argmax()))
        logits = session.feed(np.array([[tokens[-1]]]), logits="last")
    return tokenizer.decode(tokens)


def pass_keys_found(package: Path) -> int:
    """Of three keys told at different places of 1000 tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo.path() / "tokenizer.json"))
    prompts = {
        key: pass_key_prompt(tokenizer, 1000, depth, key)
        for key, depth in (("48213", 0.1), ("90577", 0.5), ("31642", 0.8))
    }
    with open_session(package) as session:
        return sum(key in answer(session, tokenizer, prompt) for key, prompt in prompts.items())


def test_yarn_finds_a_pass_key_at_four_times_the_trained_context(packages, tmp_path):
    """The demo's README: exact match 0.95 with yarn and 0.00 without at 1024 tokens."""
    assert pass_keys_found(packages["fp32"]) >= 2
    assert pass_keys_found(export_demo(tmp_path / "plain", "fp32", method="none")) == 0


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantised_cache_finds_it_too(tmp_path, kind):
    """Scales come from the text that is part of the exporter."""
    assert pass_keys_found(export_demo(tmp_path / kind, "fp32", cache=kind)) >= 2


def test_feeding_past_the_baked_maximum_raises_and_changes_nothing(packages):
    from ctx_export.core.errors import UserError

    ids = np.random.default_rng(2).integers(3, 2048, (1, 1024))
    with open_session(packages["fp32"]) as session:
        session.feed(ids[:, :1000], logits="last")
        with pytest.raises(UserError, match="1024"):
            session.feed(ids[:, :25], logits="last")
        assert list(session.seen) == [1000]
        after = session.feed(ids[:, 1000:], logits="last")
        session.reset()
        fresh = session.feed(ids, logits="last")
    np.testing.assert_allclose(after, fresh, rtol=0, atol=1e-4 * np.abs(fresh).max())
