"""Packages with onnxruntime-genai's interface: its own Generator writes what transformers writes.

The oracle is transformers' own greedy generation of the checkpoint with the scaling in its config;
the native package's session stands beside it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from ctx_export import demo
from ctx_export.cli.export import main as export_command
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import export_source, load_source
from ctx_export.runtime.session import open_session
from ctx_export.validate import run as validate
from tests.support.checkpoints import copy_demo

TARGET, TRAINED, NEW = 1024, 256, 16
ROPE: dict[str, dict[str, Any]] = {
    "none": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "ntk": {"rope_type": "default", "rope_theta": 10000.0 * 4.0 ** (64 / 62)},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "original_max_position_embeddings": TRAINED,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "theta": {"rope_type": "default", "rope_theta": 80000.0},
    "proportional": {"rope_type": "proportional", "factor": 4.0, "partial_rotary_factor": 0.5},
}
SCALING: dict[str, dict[str, Any]] = {
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "theta": {"rope_theta": 80000.0},
    "proportional": {"partial_rotary_factor": 0.5},
}


@pytest.fixture(scope="module")
def og() -> Any:
    return pytest.importorskip(
        "onnxruntime_genai", reason="onnxruntime-genai is not installed: pip install '.[dev]'"
    )


@cache
def source(precision: str = "fp32") -> Source:
    return load_source(Recipe(precision=precision))


def exported(out: Path, **options: Any) -> Path:
    options = {"method": "yarn", "target": TARGET, "precision": "fp32", **options}
    recipe = Recipe(engine="none", validate=False, output=out, **options)
    return export_source(source(recipe.precision or "fp32"), recipe).output


@pytest.fixture(scope="module")
def genai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("genai") / "yarn", io="genai", max_batch=2)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("native") / "yarn", max_batch=2)


@cache
def transformers_model(method: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(demo.path())
    config.rope_parameters = {"rope_theta": 10000.0, **ROPE[method]}
    config.max_position_embeddings = TARGET
    model = AutoModelForCausalLM.from_pretrained(demo.path(), config=config, dtype=torch.float32)
    return model.eval()


def transformers_tokens(method: str, prompt: list[int], count: int) -> list[int]:
    import torch

    ids = torch.tensor([prompt])
    written = transformers_model(method).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        suppress_tokens=[2],
    )
    return [int(token) for token in written[0, len(prompt) :]]


def session_tokens(package: Path, prompt: list[int], count: int) -> list[int]:
    with open_session(package) as session:
        logits, written = session.feed([prompt], logits="last"), []
        for _ in range(count):
            written.append(best(logits[0]))
            logits = session.feed([[written[-1]]], logits="last")
    return written


def best(logits: np.ndarray) -> int:
    """The likeliest token but the end of the text, which would stop one row of a batch."""
    logits = logits.copy()
    logits[2] = -np.inf
    return int(logits.argmax())


class Generated:
    """onnxruntime-genai's Generator, asked for tokens one by one."""

    def __init__(self, og: Any, package: Path, prompts: list[list[int]], **search: Any) -> None:
        model = og.Model(str(package))
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, batch_size=len(prompts), **search)
        self.generator = og.Generator(model, params)
        ids = np.zeros((len(prompts), max(map(len, prompts))), np.int32)  # 0 is the demo's pad id
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        self.generator.append_tokens(ids if len(prompts) > 1 else ids[0])

    def tokens(self, count: int) -> list[list[int]]:
        rows = []
        for _ in range(count):
            logits = self.generator.get_logits()
            logits[..., 2] = -np.inf  # as `best`
            self.generator.set_logits(logits)
            self.generator.generate_next_token()
            rows.append([int(token) for token in self.generator.get_next_tokens()])
        return [list(row) for row in zip(*rows, strict=True)]


def prompt_of(length: int) -> list[int]:
    """Held-out text: its continuations are likelier by more than rounding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo.path() / "tokenizer.json"))
    ids = tokenizer.encode(demo.heldout_text()[: 12 * length], add_special_tokens=False).ids
    return [1, *ids[: length - 1]]


@pytest.mark.parametrize("share", [True, False], ids=["shared", "growing"])
@pytest.mark.parametrize("length", [1, 7, 255, 300, 701])
def test_it_writes_what_transformers_and_the_session_write(og, genai, native, length, share):
    prompt = prompt_of(length)
    generated = Generated(og, genai, [prompt], max_length=TARGET, past_present_share_buffer=share)
    written = generated.tokens(NEW)[0]
    assert written == session_tokens(native, prompt, NEW)
    assert written == transformers_tokens("yarn", prompt, NEW)


@pytest.mark.parametrize("method", [name for name in ROPE if name != "yarn"])
def test_every_method_of_full_caches_is_computed(og, tmp_path, method):
    package = exported(
        tmp_path / method, io="genai", method=method, parameters=SCALING.get(method, {})
    )
    prompt = prompt_of(400)
    written = Generated(og, package, [prompt], max_length=TARGET).tokens(NEW)[0]
    assert written == transformers_tokens(method, prompt, NEW)


@pytest.mark.parametrize("method", ["ntk-by-parts", "self-extend", "dual-chunk"])
def test_methods_unknown_to_transformers_agree_with_the_session(og, tmp_path, method):
    package = exported(tmp_path / "genai", io="genai", method=method)
    twin = exported(tmp_path / "native", method=method)
    prompt = prompt_of(400)
    written = Generated(og, package, [prompt], max_length=TARGET).tokens(NEW)[0]
    assert written == session_tokens(twin, prompt, NEW)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "growing"])
def test_a_batch_that_is_padded_writes_what_its_rows_write(og, genai, share):
    prompts = [prompt_of(300), prompt_of(41)[::-1]]
    batch = Generated(og, genai, prompts, max_length=512, past_present_share_buffer=share)
    alone = [transformers_tokens("yarn", prompt, NEW) for prompt in prompts]
    assert batch.tokens(NEW) == alone


@pytest.mark.parametrize("share", [True, False], ids=["shared", "growing"])
def test_generation_reaches_the_baked_maximum_and_stops_there(og, genai, share):
    prompt = prompt_of(TARGET - 4)
    generated = Generated(og, genai, [prompt], max_length=TARGET, past_present_share_buffer=share)
    assert generated.tokens(4)[0] == transformers_tokens("yarn", prompt, 4)
    assert generated.generator.is_done()
    with pytest.raises(RuntimeError, match="context_length"):
        Generated(og, genai, [prompt], max_length=TARGET + 1)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "growing"])
def test_a_long_prompt_in_chunks_and_a_second_turn(og, tmp_path, share):
    """chunk_size is the package's max_chunk where it is made for one sequence."""
    package = exported(tmp_path / "out", io="genai", max_chunk=64)
    config = json.loads((package / "genai_config.json").read_text())
    assert config["search"]["chunk_size"] == 64
    text = prompt_of(500)
    generated = Generated(
        og, package, [text[:350]], max_length=TARGET, past_present_share_buffer=share
    )
    first = generated.tokens(5)[0]
    assert first == transformers_tokens("yarn", text[:350], 5)
    generated.generator.append_tokens(np.array(text[350:], np.int32))
    whole = [*text[:350], *first, *text[350:]]
    assert generated.tokens(5)[0] == transformers_tokens("yarn", whole, 5)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "growing"])
def test_a_generation_that_is_taken_back_goes_on_from_there(og, genai, share):
    prompt = prompt_of(300)
    generated = Generated(og, genai, [prompt], max_length=TARGET, past_present_share_buffer=share)
    generated.tokens(8)
    generated.generator.rewind_to(290)
    generated.generator.append_tokens(np.array(prompt_of(20), np.int32))
    whole = [*prompt[:290], *prompt_of(20)]
    assert generated.tokens(6)[0] == transformers_tokens("yarn", whole, 6)


def test_beams_are_searched_over_growing_caches(og, genai):
    """One beam of several that starts as greedy search does: the cache follows its beam."""
    import torch

    prompt = prompt_of(300)
    model = og.Model(str(genai))
    params = og.GeneratorParams(model)
    params.set_search_options(num_beams=3, max_length=308, length_penalty=1.0)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    ids = torch.tensor([prompt])
    expected = transformers_model("yarn").generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_length=308,
        num_beams=3,
        do_sample=False,
        early_stopping=True,
    )
    written = generator.get_sequence(0)
    assert [int(token) for token in written] == expected[0].tolist()[: len(written)]


@pytest.mark.parametrize("kind", ["int8"])
def test_a_quantised_cache_agrees_with_the_session(og, tmp_path, kind):
    package = exported(tmp_path / "genai", io="genai", kv_cache_dtype=kind)
    twin = exported(tmp_path / "native", kv_cache_dtype=kind)
    prompt = prompt_of(300)
    written = Generated(og, package, [prompt], max_length=TARGET).tokens(NEW)[0]
    assert written == session_tokens(twin, prompt, NEW)


def test_weights_are_the_checkpoint_s_own_file_and_are_read_by_offset(og, tmp_path):
    """A second hard link, where the file system makes no clones, does not keep the loader out."""
    from safetensors.torch import load_file, save_file

    checkpoint = copy_demo(tmp_path, dtype="float32")
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({k: v.float() for k, v in tensors.items()}, checkpoint / "model.safetensors")
    recipe = Recipe(
        model=str(checkpoint),
        method="yarn",
        target=TARGET,
        engine="none",
        io="genai",
        validate=False,
        output=tmp_path / "out",
    )
    result = export_source(load_source(recipe), recipe)
    assert result.manifest.weights["storage"] in ("cloned", "linked")
    if result.manifest.weights["storage"] == "linked":
        shared = result.output / "model.safetensors"
        assert shared.samefile(checkpoint / "model.safetensors")
    assert not (result.output / "model.onnx.data").exists()
    prompt = prompt_of(300)
    written = Generated(og, result.output, [prompt], max_length=TARGET).tokens(NEW)[0]
    assert written == transformers_tokens("yarn", prompt, NEW)


# What follows needs no onnxruntime-genai.


def stock(package: Path) -> ort.InferenceSession:
    return ort.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, ids: Any, mask: Any, past: dict[str, Any]) -> Any:
    names = [value.name for value in session.get_outputs()]
    feeds = {"input_ids": np.array(ids), "attention_mask": np.array(mask), **past}
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    logits = outputs.pop("logits")
    return logits, {n.replace("present", "past_key_values"): v for n, v in outputs.items()}


def empty(batch: int, slots: int = 0) -> dict[str, Any]:
    return {
        f"past_key_values.{layer}.{part}": np.zeros((batch, 2, slots, 64), np.float32)
        for layer in range(5)
        for part in ("key", "value")
    }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("slots", [0, 64], ids=["growing", "preallocated"])
def test_padding_on_either_side_gives_the_session_s_logits(genai, native, side, slots):
    """Prompts of 5 and 11 tokens, then three tokens each; the oracle is each row alone."""
    rng = np.random.default_rng(4)
    rows = [rng.integers(3, 2048, 5), rng.integers(3, 2048, 11)]
    after = rng.integers(3, 2048, (3, 2))
    ids, mask = np.zeros((2, 11), np.int64), np.zeros((2, 11), np.int64)
    for row, tokens in enumerate(rows):
        place = slice(11 - len(tokens), 11) if side == "left" else slice(len(tokens))
        ids[row, place], mask[row, place] = tokens, 1
    session = stock(genai)
    logits, past = run(session, ids, mask, empty(2, slots))
    found = [logits]
    for tokens in after:
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        logits, past = run(session, tokens[:, None], mask, past)
        found.append(logits)
    assert past["past_key_values.0.key"].shape[2] == max(slots, 14)
    for row, tokens in enumerate(rows):
        with open_session(native) as alone:
            expected = [alone.feed([tokens], logits="last")]
            expected += [alone.feed([[token[row]]], logits="last") for token in after]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == (2, 1, 2048)
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(ours[row], theirs, rtol=0, atol=1e-5 * scale)


def test_a_shared_buffer_is_written_in_place(genai):
    """Past and present in one memory: rows of earlier tokens stay, later slots are not touched."""
    session = stock(genai)
    given = {n: ort.OrtValue.ortvalue_from_numpy(v + 7) for n, v in empty(1, 300).items()}
    binding = session.io_binding()
    for name, value in given.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
    binding.bind_cpu_input("input_ids", np.arange(3, 13)[None])
    binding.bind_cpu_input("attention_mask", np.ones((1, 10), np.int64))
    shared = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, 2048), np.float32))
    binding.bind_ortvalue_output("logits", shared)
    session.run_with_iobinding(binding)
    logits, fresh = run(session, np.arange(3, 13)[None], np.ones((1, 10), np.int64), empty(1))
    np.testing.assert_allclose(shared.numpy(), logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    for name, value in given.items():
        np.testing.assert_array_equal(value.numpy()[:, :, :10], fresh[name])
        assert (value.numpy()[:, :, 10:] == 7).all()


def test_the_graph_is_checked_and_its_manifest_names_the_contract(genai):
    onnx.checker.check_model(genai / "model.onnx", full_check=True)
    manifest = Manifest.load(genai)
    assert manifest.io_contract == "genai"
    session = stock(genai)
    io = {v.name: v.shape for v in (*session.get_inputs(), *session.get_outputs())}
    assert io == {t.name: list(t.shape) for t in manifest.io}
    config = json.loads((genai / "genai_config.json").read_text())["model"]
    decoder = config["decoder"]
    for names in (decoder["inputs"], decoder["outputs"]):
        for name in names.values():
            assert name.replace("%d", "4") in io
    assert (config["context_length"], config["vocab_size"], config["pad_token_id"]) == (
        1024,
        2048,
        0,
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "dynamic-ntk"}, "dynamic-ntk follows the length .* such as yarn"),
        ({"sinks": 4, "window": 60}, "slots however long the text is .*leave --sinks"),
        ({"method": "streaming"}, r"\(streaming\).*leave --sinks, --window and the cache policy"),
        ({"method": "landmark"}, "landmark, which keeps more than one slot a token"),
        (
            {"engine": "tensorrt-rtx"},
            "engine is tensorrt-rtx: .* leave --engine or --io genai out",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_onnxruntime_genai_cannot_run_is_refused(tmp_path, options, reason):
    recipe = Recipe(**{"method": "yarn", "target": TARGET, "io": "genai", **options})
    with pytest.raises(UserError, match=reason):
        export_source(source(), recipe)


def test_sessions_and_validation_name_the_reason_and_the_fix(genai):
    with pytest.raises(UserError, match="export again without --io genai"):
        open_session(genai)
    with pytest.raises(UserError, match=r"see its report\.md; export again without --io genai"):
        validate(genai, demo.path())


def test_the_command_compares_with_pytorch_before_it_changes_the_interface(tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--method", "yarn", "--target", "512", "--precision", "fp32", "--io", "genai"]
    with pytest.raises(SystemExit) as stopped:
        export_command([*given, "-o", str(out)])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert "agrees with PyTorch up to position 511" in told
    assert "its logits are those from before to" in told
    assert "before onnxruntime-genai's" in (out / "report.md").read_text()
    validation = Manifest.load(out).validation
    assert validation["passed"] and validation["interface"]["max_error"] < 1e-5
