"""tools.finetune on models of two layers: what is trained, on what, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ctx_export import demo
from ctx_export.core.errors import UserError
from ctx_export.core.plan import Plan
from ctx_export.core.recipe import Recipe, build_recipe
from ctx_export.pipeline import plan
from tests.support import tiny
from tests.support.decoders import DECODERS, save_decoder
from tests.support.families import ORIGINAL_CONTEXT
from tools.finetune import demo_text
from tools.finetune.__main__ import main
from tools.finetune.demo_text import HeldOut, demo_texts
from tools.finetune.extension import extend
from tools.finetune.lora import LoraLinear, add_lora, merge_lora
from tools.finetune.memory import check_memory
from tools.finetune.model import load, save
from tools.finetune.pass_keys import PassKeys
from tools.finetune.run import Interrupted, Request, run
from tools.finetune.settings import LoraSettings, TrainingSettings
from tools.finetune.text import Batches, Windows, load_encoder, tokenise
from tools.finetune.training import Step, Training

pytestmark = pytest.mark.usefixtures("one_thread")

TARGET = 4 * tiny.ORIGINAL_CONTEXT
_BOS = 1
_LONGROPE = [1.0 + 0.25 * index for index in range(tiny.HEAD_DIM // 2)]
# What each method needs beside its target.
METHODS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "ntk": (),
    "theta": ("scaling.rope_theta=160000",),
    "ntk-by-parts": ("scaling.beta_fast=8",),
    "yarn": (),
    "llama3": ("scaling.low_freq_factor=1", "scaling.high_freq_factor=4"),
    "longrope": (f"scaling.short_factor={[1.0] * 8}", f"scaling.long_factor={_LONGROPE}"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama with a tokenizer of 96 characters."""
    folder = tiny.save(tmp_path_factory.mktemp("tiny"), bos_token_id=_BOS, eos_token_id=2)
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {chr(32 + code): code for code in range(95)} | {"\n": 95}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    entries = {"model_max_length": tiny.ORIGINAL_CONTEXT, "tokenizer_class": "TokenizersBackend"}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"line {n} follows line {n - 1}.\n" for n in range(300)))
    return path


def request(checkpoint: Path, text: Path, output: Path, **options: Any) -> Request:
    scaling = {"method": "linear", "target": TARGET, **options.pop("scaling", {})}
    own = {"steps": 6, "batch": 2, "warmup": 0, **options.pop("training", {})}
    return Request(
        recipe=build_recipe(
            {"model": str(checkpoint), **scaling}, settings=options.pop("settings", ())
        ),
        texts=(str(text),),
        output=output,
        length=options.pop("length", 64),
        rate=options.pop("rate", 3e-3),
        training=lambda length, rate: TrainingSettings(length=length, rate=rate, **own),
        device="cpu",
        **options,
    )


def finetune(asked: Request, *, stop_after: int | None = None) -> list[Step]:
    """Run; with `stop_after` as if Ctrl-C came after that step."""
    import signal

    steps: list[Step] = []

    def on_step(_: int, __: int) -> Any:
        def take(step: Step) -> None:
            steps.append(step)
            if step.step == stop_after:
                signal.raise_signal(signal.SIGINT)

        return take

    run(asked, lambda _: None, on_step)
    return steps


def weights(directory: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(directory / "model.safetensors")


def test_the_loss_falls_and_the_checkpoint_keeps_its_kind(checkpoint, text, tmp_path):
    steps = finetune(request(checkpoint, text, tmp_path / "out", training={"steps": 30}))
    assert np.mean([s.loss for s in steps[-5:]]) < 0.7 * steps[0].loss
    made, before = weights(tmp_path / "out"), weights(checkpoint)
    assert made.keys() == before.keys()
    assert all(made[name].dtype == before[name].dtype for name in made)
    assert all((made[name] != before[name]).any() for name in made)
    log = (tmp_path / "out" / "finetune.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in log] == [step.loss for step in steps]
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {
        "model_max_length": TARGET,
        "tokenizer_class": "TokenizersBackend",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("method", METHODS)
def test_an_export_of_the_result_has_the_table_that_was_trained_with(
    method, checkpoint, text, tmp_path
):
    asked = request(
        checkpoint,
        text,
        tmp_path / "out",
        scaling={"method": method},
        settings=METHODS[method],
        length=TARGET,
        training={"steps": 1, "batch": 1},
    )
    finetune(asked)
    before, after = plan(asked.recipe), plan(Recipe(model=str(tmp_path / "out")))
    assert after.max_context == before.max_context == TARGET
    np.testing.assert_array_equal(after.table.inv_freq, before.table.inv_freq)
    assert after.table.multiplier == pytest.approx(before.table.multiplier, rel=1e-12)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == TARGET
    assert config["original_max_position_embeddings"] == tiny.ORIGINAL_CONTEXT
    trained = tiny.load(tmp_path / "out").model.rotary_emb
    _check_turns(trained, before)


def _check_turns(rotary: Any, planned: Plan) -> None:
    """Oracle: cos and sin of position × the plan's frequency, in float64."""
    positions = torch.arange(TARGET)[None]
    cos, sin = rotary(torch.zeros(1), positions)
    angle = np.arange(TARGET)[:, None] * planned.table.inv_freq.astype(np.float64)
    angle = np.concatenate([angle, angle], axis=1)
    for given, expected in ((cos, np.cos(angle)), (sin, np.sin(angle))):
        np.testing.assert_allclose(given[0], expected * planned.table.multiplier, atol=1e-4)


def test_a_factor_and_an_original_context_of_ones_own_are_kept(checkpoint, text, tmp_path):
    scaling = {"factor": 8.0, "original_context": 32}
    asked = request(checkpoint, text, tmp_path / "out", scaling=scaling, training={"steps": 1})
    finetune(asked)
    after = plan(Recipe(model=str(tmp_path / "out")))
    assert (after.factor, after.original_context) == (8.0, 32)
    np.testing.assert_array_equal(after.table.inv_freq, plan(asked.recipe).table.inv_freq)


@pytest.mark.parametrize("method", ["ntk", "yarn"])
@pytest.mark.parametrize("family", ["gemma3_text", "gpt_neox", "qwen3_moe"])
def test_tables_of_layers_with_windows_and_of_parts_of_heads_are_kept(family, method, tmp_path):
    recipe = Recipe(
        model=str(save_decoder(DECODERS[family], tmp_path / "source")),
        method=method,
        target=4 * ORIGINAL_CONTEXT,
    )
    extension = extend(recipe)
    settings = TrainingSettings(length=64, rate=1e-3)
    save(load(extension, settings, "cpu"), extension, tmp_path / "out")
    before, after = plan(recipe), plan(Recipe(model=str(tmp_path / "out")))
    for one, other in zip(before.tables, after.tables, strict=True):
        np.testing.assert_array_equal(one.inv_freq, other.inv_freq)


def test_a_method_that_a_familys_config_cannot_say_is_refused(tmp_path):
    phi3 = str(save_decoder(DECODERS["phi3"], tmp_path / "phi3"))
    with pytest.raises(UserError, match=r"method yarn cannot be written .* phi3 .*longrope.*ntk"):
        extend(Recipe(model=phi3, method="yarn", target=4 * ORIGINAL_CONTEXT))
    extend(Recipe(model=phi3, method="ntk", target=4 * ORIGINAL_CONTEXT))
    gptj = str(save_decoder(DECODERS["gptj"], tmp_path / "gptj"))
    with pytest.raises(UserError, match=r"gptj has no rotary settings in its config\.json"):
        extend(Recipe(model=gptj, method="linear", target=4 * ORIGINAL_CONTEXT))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, alpha=4, mlp=True)])
def test_an_interrupted_run_ends_in_the_same_weights(lora, checkpoint, text, tmp_path):
    training = {"steps": 7, "lora": lora, "schedule": "cosine", "warmup": 3, "pass_keys": 0.5}
    # A dropout's random numbers belong to the steps too.
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    asked = request(source, text, tmp_path / "whole", length=TARGET, training=training)
    whole = finetune(asked)
    cut = replace(asked, output=tmp_path / "cut", save_every=2)
    with pytest.raises(Interrupted, match="after step 3"):
        finetune(cut, stop_after=3)
    rest = finetune(cut)
    assert [step.step for step in rest] == [4, 5, 6, 7]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all((one[name] == other[name]).all() for name in one)
    log = (tmp_path / "cut" / "finetune.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in log] == [step.loss for step in whole]


def test_losses_after_the_last_saved_state_are_computed_again(checkpoint, text, tmp_path):
    asked = request(checkpoint, text, tmp_path / "whole", training={"steps": 5})
    whole = finetune(asked)
    cut = replace(asked, output=tmp_path / "cut", save_every=2)

    def fall(_: int, __: int) -> Any:
        def take(step: Step) -> None:
            if step.step == 3:
                raise RuntimeError("the machine stopped")

        return take

    with pytest.raises(RuntimeError, match="stopped"):
        run(cut, lambda _: None, fall)
    assert [step.step for step in finetune(cut)] == [3, 4, 5]
    log = (tmp_path / "cut" / "finetune.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in log] == [step.loss for step in whole]


def test_an_interrupted_run_goes_on_with_its_own_settings_only(checkpoint, text, tmp_path):
    asked = request(checkpoint, text, tmp_path / "out")
    with pytest.raises(Interrupted):
        finetune(asked, stop_after=2)
    other = replace(asked, rate=1e-3)
    with pytest.raises(UserError, match=r"interrupted run whose training is .* --restart"):
        finetune(other)
    assert len(finetune(replace(other, restart=True))) == 6


def test_a_run_does_not_go_on_from_other_weights(checkpoint, text, tmp_path):
    """LoRA's state has no weights of the model: they would be mixed."""
    own = tmp_path / "own"
    shutil.copytree(checkpoint, own)
    asked = request(own, text, tmp_path / "out")
    with pytest.raises(Interrupted):
        finetune(asked, stop_after=2)
    (shard,) = own.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes())
    os.utime(shard, (1, 1))
    with pytest.raises(UserError, match="interrupted run whose model_weights is"):
        finetune(asked)


def test_a_file_where_the_state_would_be_is_named(checkpoint, text, tmp_path):
    (tmp_path / "out.partial").write_text("mine")
    with pytest.raises(UserError, match=r"out\.partial is not a directory: remove it"):
        finetune(replace(request(checkpoint, text, tmp_path / "out"), restart=True))


def test_batches_that_are_accumulated_are_one_batch(checkpoint, text, tmp_path):
    at_once = request(
        checkpoint, text, tmp_path / "a", training={"batch": 4, "steps": 3, "pass_keys": 0.25}
    )
    in_parts = replace(
        at_once,
        output=tmp_path / "b",
        training=lambda length, rate: TrainingSettings(
            length=length, rate=rate, batch=1, accumulate=4, steps=3, warmup=0, pass_keys=0.25
        ),
    )
    losses = [
        [step.loss for step in finetune(replace(a, length=TARGET))] for a in (at_once, in_parts)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_gradient_checkpointing_computes_the_same(checkpoint, text, tmp_path):
    plain = request(checkpoint, text, tmp_path / "a", training={"steps": 3})
    saving = request(
        checkpoint,
        text,
        tmp_path / "b",
        training={"steps": 3, "gradient_checkpointing": True},
    )
    assert [s.loss for s in finetune(plain)] == pytest.approx([s.loss for s in finetune(saving)])


def _adapted(checkpoint: Path, **lora: Any) -> tuple[Any, LoraSettings]:
    settings = LoraSettings(**{"rank": 3, "alpha": 6.0, **lora})
    model = tiny.load(checkpoint)
    add_lora(model, settings, seed=5)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_b.data.normal_(0, 0.1, generator=generator)
    return model, settings


def test_merged_matrices_compute_what_they_did_beside_the_weights(checkpoint):
    tokens = torch.arange(40)[None]
    plain = tiny.load(checkpoint)(tokens).logits
    model, _ = _adapted(checkpoint, mlp=True)
    beside = model(tokens).logits
    merge_lora(model)
    merged = model(tokens).logits
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    scale = float(plain.detach().abs().max())
    assert float((merged - beside).detach().abs().max()) < 1e-5 * scale
    assert float((merged - plain).detach().abs().max()) > 1e-2 * scale


def test_lora_begins_at_the_checkpoint_and_trains_its_matrices_only(checkpoint, text, tmp_path):
    model = tiny.load(checkpoint)
    tokens = torch.arange(40)[None]
    plain = model(tokens).logits
    add_lora(model, LoraSettings(rank=3, alpha=6.0), seed=0)
    assert torch.equal(model(tokens).logits, plain)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert trained == {
        f"model.layers.{layer}.self_attn.{name}.lora_{part}"
        for layer in range(tiny.LAYERS)
        for name in heads
        for part in "ab"
    }
    lora = LoraSettings(rank=3, alpha=6.0)
    finetune(request(checkpoint, text, tmp_path / "out", training={"lora": lora}))
    made, before = weights(tmp_path / "out"), weights(checkpoint)
    assert made.keys() == before.keys()
    for name in made:
        assert (made[name] != before[name]).any() == any(head in name for head in heads)
    change = (
        made["model.layers.0.self_attn.q_proj.weight"]
        - (before["model.layers.0.self_attn.q_proj.weight"])
    )
    assert np.linalg.matrix_rank(change, tol=1e-5) == 3


def test_windows_cover_the_text_and_a_seed_decides_their_order():
    tokens = np.arange(1000, dtype=np.int64)
    windows = Windows(tokens, 30, bos=7, seed=3)
    assert windows.count == 33
    seen = np.concatenate([windows[n][1:] for n in range(33)])
    assert all(windows[n][0] == 7 and len(windows[n]) == 31 for n in range(33))
    assert len(set(seen)) == 33 * 30  # no token twice in one time through the text
    assert (Windows(tokens, 30, bos=7, seed=3)[40] == windows[40]).all()
    orders = [[int(w[n][1]) for n in range(33)] for w in (windows, Windows(tokens, 30, 7, 4))]
    assert orders[0] != orders[1]
    assert orders[0] != [int(windows[n][1]) for n in range(33, 66)]
    whole = Windows(tokens, 30, bos=None, seed=3)[0]
    assert len(whole) == 31 and (np.diff(whole) == 1).all()


def test_a_pass_key_is_told_once_and_its_question_weighs_more():
    encode = load_encoder(demo.path())
    window = np.array([1, *encode("import sys\n" * 200)][:301], np.int64)
    made, weight = PassKeys(encode, 300, 1, seed=0).row(window, 4, 0)
    from tools.eval.pass_keys import tokenizer

    shown = tokenizer().decode(made.tolist())
    key = shown.split("What is the pass key? The pass key is ")[1][:5]
    assert shown.count(f"The pass key is {key}. Remember it. {key} is the pass key.") == 1
    assert len(made) == 301 and made[0] == 1 and len(weight) == 300
    asked = len(encode(f"\nWhat is the pass key? The pass key is {key}.\n"))
    assert (weight[-asked:] == 3).all() and (weight[:-asked] == 1).all()
    again, _ = PassKeys(encode, 300, 1, seed=0).row(window, 4, 0)
    other, _ = PassKeys(encode, 300, 1, seed=0).row(window, 5, 0)
    assert (made == again).all() and (made != other).any()


def test_the_share_of_pass_keys_is_of_a_steps_windows():
    windows = Windows(np.full(5000, 9, np.int64), 300, bos=1, seed=0)
    asked = PassKeys(load_encoder(demo.path()), 300, 1, seed=0)
    batches = Batches(windows, 2, 2, asked, questions=3).of_step(0)
    heavy = [bool((weight > 1).any()) for batch in batches for weight in batch.weights]
    assert heavy == [True, True, True, False]


def test_demo_text_leaves_out_what_shares_passages_with_the_held_out_text():
    texts = demo_texts()
    held = demo_text.content_lines(demo.heldout_text())
    runs = {tuple(held[n : n + 4]) for n in range(len(held) - 3)}
    lines = set(held)
    assert sum(map(len, texts)) > 1_000_000
    for text in texts:
        own = demo_text.content_lines(text)
        assert not any(tuple(own[n : n + 4]) in runs for n in range(len(own) - 3))
        assert sum(line in lines for line in own) < 0.05 * len(own)


def test_overlap_is_found_in_other_versions_of_a_file(tmp_path):
    lines = [f"    value_{n} = compute_something({n})" for n in range(50)]
    held_out = HeldOut("\n".join(lines))
    fresh = [f"    other_{n} = fetch_another_thing({n})" for n in range(200)]
    assert not held_out.overlaps("\n".join(fresh))
    assert not held_out.overlaps("\n".join([*fresh, *lines[:3]]))
    assert held_out.overlaps("\n".join([*fresh, *lines[10:14]]))  # a passage
    assert held_out.overlaps("\n".join(line.strip() for line in lines[20:24]))
    scattered = [row for n in range(12) for row in (lines[4 * n], *fresh[15 * n : 15 * n + 15])]
    assert held_out.overlaps("\n".join(scattered))  # one line in sixteen
    for name, text in (("kept", fresh), ("left", lines)):
        (tmp_path / f"{name}.py").write_text("\n".join(text))
    held = demo.heldout_text().splitlines()
    (tmp_path / "version.py").write_text("\n".join([*fresh, "import newer", *held[100:140]]))
    assert len(demo_texts(tmp_path)) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--method", "linaer"), "unknown method 'linaer', did you mean linear"),
        (("--method", "streaming"), "method streaming is a cache policy"),
        (("--method", "dynamic-ntk"), "method dynamic-ntk changes its frequencies"),
        (("--set", "engine=none"), "--set engine=none: a fine-tuning takes scaling"),
        (("--target", "32"), "target 32 is below the original context 64"),
        (("--length", "1k"), "length 1024 is above the target 256"),
        (("--rate", "0"), "rate is 0: give a finite number above 0"),
        (("--warmup", "300"), "warmup is 300: give 0 to 200"),
        (("--pass-keys", "2"), "pass-keys is 2: give a share from 0 to 1"),
        (("--pass-keys", "0.01"), "none would be a question: give at least 0.25"),
        (("--lora-alpha", "4"), "belong to --lora"),
        (("--target", "100m"), "needs at least"),
        (("--target", "16k"), "the text has 7879 tokens and a window needs 16385: give more"),
        (("--text", "/nowhere.txt"), "text /nowhere.txt cannot be read as UTF-8"),
    ],
)
def test_errors_of_use_name_the_value_and_the_fix(options, told, checkpoint, text, tmp_path):
    arguments = [str(checkpoint), "--target", "256", "--method", "linear", "--device", "cpu"]
    arguments += ["--text", str(text), "-o", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "told"), [(b"", "is empty"), (b"\xff\xfe", "UTF-8 text")])
def test_text_that_cannot_be_trained_on(content, told, checkpoint, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(content)
    with pytest.raises(UserError, match=told):
        finetune(request(checkpoint, bad, tmp_path / "out"))


def test_an_output_that_exists_is_replaced_only_if_forced(checkpoint, text, tmp_path):
    (tmp_path / "out").mkdir()
    asked = request(checkpoint, text, tmp_path / "out", training={"steps": 1})
    with pytest.raises(UserError, match="exists: give --force"):
        finetune(asked)
    finetune(replace(asked, recipe=replace(asked.recipe, force=True)))
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_rate_that_is_too_high_is_said_to_be(checkpoint, text, tmp_path):
    with pytest.raises(UserError, match=r"the loss is .* at step \d+: give a --rate below 1e\+30"):
        finetune(request(checkpoint, text, tmp_path / "out", rate=1e30))


def test_the_same_command_gives_the_same_weights_and_another_seed_others(
    checkpoint, text, tmp_path
):
    arguments = [str(checkpoint), "--method", "yarn", "--target", "256", "--length", "128"]
    arguments += ["--text", str(text), "--steps", "2", "--device", "cpu", "--rate", "1e-3"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        out = str(tmp_path / name)
        result = CliRunner().invoke(main, [*arguments, "--seed", seed, "-o", out])
        assert result.exit_code == 0, result.output
        assert f"checkpoint {out}" in result.output and "step 2/2" in result.output
    made = {name: weights(tmp_path / name) for name in "abc"}
    assert all((made["a"][name] == made["b"][name]).all() for name in made["a"])
    assert any((made["a"][name] != made["c"][name]).any() for name in made["a"])


def test_rates_warm_up_from_a_tenth_and_fall_as_a_cosine_to_a_tenth():
    settings = TrainingSettings(length=8, rate=1.0, steps=100, warmup=20, schedule="cosine")
    assert settings.rate_at(0) == pytest.approx(0.1)
    assert settings.rate_at(10) == pytest.approx(0.55)
    assert settings.rate_at(20) == pytest.approx(1.0)
    assert settings.rate_at(60) == pytest.approx(0.55)
    assert settings.rate_at(99) == pytest.approx(0.1, abs=1e-3)
    constant = replace(settings, schedule="constant")
    assert {constant.rate_at(step) for step in range(20, 100)} == {1.0}


def test_one_step_is_torchs_own_adamw(checkpoint, text):
    """Oracle: the same step written out with torch.optim and transformers' own loss."""
    recipe = Recipe(model=str(checkpoint), method="linear", target=TARGET)
    extension = extend(recipe)
    settings = TrainingSettings(length=64, rate=1e-3, batch=2, warmup=0)
    tokens = tokenise(load_encoder(checkpoint), [text.read_text()], tiny.VOCAB)
    batch = Batches(Windows(tokens, 64, _BOS, 0), 2, 1).of_step(0)
    training = Training(load(extension, settings, "cpu"), settings, "cpu")
    training.step(batch)
    rope = {"rope_type": "linear", "rope_theta": tiny.THETA, "factor": 4.0}
    model = tiny.load(checkpoint, rope)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    ids = torch.from_numpy(batch[0].tokens)
    model(ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    for (name, one), other in zip(
        training.model.named_parameters(), model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0, msg=name)


def test_memory_is_reckoned_before_anything_is_loaded(checkpoint):
    extension = extend(Recipe(model=str(checkpoint), method="linear", target=TARGET))
    small = TrainingSettings(length=64, rate=1e-3)
    check_memory(extension, small, "cpu")
    with pytest.raises(UserError, match=r"length 1m with batch 99999 needs at least .* GiB"):
        check_memory(extension, replace(small, length=1 << 20, batch=99999), "cpu")


def test_help_needs_no_torch():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['finetune', '--help']\n"
        "try:\n"
        "    runpy.run_module('tools.finetune', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--method" in done.stdout
