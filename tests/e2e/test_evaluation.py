"""ctx-eval on packages of the demo: transformers' own scores, an interrupted run, wrong input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ctx_export import demo
from ctx_export.cli.eval import main
from ctx_export.core.recipe import build_recipe
from ctx_export.evaluation.needle import Cell, NeedleSetting, questions
from ctx_export.evaluation.perplexity import PerplexitySetting, windows
from ctx_export.evaluation.text import Codec
from ctx_export.pipeline import export_source, load_source

HELDOUT = demo.path() / "heldout.txt"
THETA = 10000.0
# What transformers calls each method at four times the demo's 256 tokens; ntk is its base alone.
ROPES = {
    "none": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "ntk": {"rope_type": "default", "rope_theta": THETA * 4 ** (64 / 62)},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "dynamic-ntk": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "short_factor": [1.0] * 32,
        "long_factor": [1.0 + place / 8 for place in range(32)],
    },
    "proportional": {"rope_type": "proportional", "factor": 4.0, "partial_rotary_factor": 0.5},
}
PARAMETERS = {
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "proportional": ("partial_rotary_factor",),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo by every method of ROPES at 1k, and streaming, in float32."""
    folder = tmp_path_factory.mktemp("evaluation")
    fixed = {"precision": "fp32", "engine": "none", "validate": {"enabled": False}}
    options = {name: {"method": name, "target": 1024} for name in ROPES}
    for name, keys in PARAMETERS.items():
        options[name]["scaling"] = {key: ROPES[name][key] for key in keys}
    options["longrope"]["factor"] = 4  # else of the config's lengths, which are one
    options["streaming"] = {"method": "streaming"}
    recipes = {
        name: build_recipe({"model": "demo", "output": folder / name}, options={**fixed, **given})
        for name, given in options.items()
    }
    source = load_source(recipes["none"])
    return {name: export_source(source, recipe).output for name, recipe in recipes.items()}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginning of the held-out text, some 3000 tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(HELDOUT.read_text(encoding="utf-8")[:9000], encoding="utf-8")
    return path


def codec() -> Codec:
    return Codec.of(demo.path(), 1, 2048)


def log_probabilities(method: str, tokens: np.ndarray) -> np.ndarray:
    """transformers' own model, one forward: of every token but the first, [N-1]."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(demo.path())
    config.rope_parameters = {"rope_theta": THETA, **ROPES[method]}
    model = AutoModelForCausalLM.from_pretrained(demo.path(), config=config, dtype=torch.float32)
    ids = torch.from_numpy(tokens)[None]
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits[0].double()
    found = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
    return found.numpy()


def invoke(*arguments: object) -> dict:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json", "--threads", "2"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_perplexity_is_the_one_that_transformers_gives(packages, text):
    found = invoke(
        "perplexity", *(packages[name] for name in ROPES), "--text", text, "--lengths",
        "200,700", "--windows", 2, "--stride", 50,
    )  # fmt: skip
    setting = PerplexitySetting(lengths=(200, 700), stride=50, windows=2)
    cut = windows(codec().ids(text.read_text()), codec(), setting)
    for point in found["points"]:
        means = [
            log_probabilities(point["subject"], window)[-50:].mean()
            for window in cut[point["length"]]
        ]
        expected = np.exp(-np.mean(means))
        assert point["perplexity"] == pytest.approx(expected, rel=1e-3), point["subject"]
    assert len(found["points"]) == 2 * len(ROPES)


def test_a_needles_log_probability_is_the_one_that_transformers_gives(packages, text):
    found = invoke(
        "needle", *(packages[name] for name in ROPES), "--text", text, "--lengths", "300,700",
        "--depths", "0,50", "--keys", 1,
    )  # fmt: skip
    setting = NeedleSetting(lengths=(300, 700), depths=(0.0, 0.5), keys=1)
    ids = codec().ids(text.read_text())
    seen = set()
    for cell in found["cells"]:
        place = Cell(length=cell["length"], depth=cell["depth"])
        question = questions(codec(), ids, place, setting)[0]
        known = log_probabilities(cell["subject"], question.tokens)[question.first - 1 :]
        assert cell["log_probability"] == pytest.approx(known.sum(), abs=1e-3)
        seen.add((cell["subject"], cell["found"]))
    assert ("yarn", 1.0) in seen and ("none", 0.0) in seen


def test_transformers_beside_a_package_scores_the_same(packages, text):
    found = invoke(
        "perplexity", packages["dynamic-ntk"], "--text", text, "--lengths", "100,500",
        "--windows", 2, "--transformers", "demo",
    )  # fmt: skip
    ours, theirs = found["points"][:2], found["points"][2:]
    for one, other in zip(ours, theirs, strict=True):
        assert other["subject"] == "dynamic-ntk (transformers)"
        assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-3)
        assert one["perplexity"] != other["perplexity"]  # two computations, not one


ARGUMENTS = ("--lengths", "300,500", "--depths", "3", "--keys", "2", "--threads", "2")


def start(packages: dict[str, Path], text: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "ctx_export.cli.eval", "needle", str(packages["yarn"]),
        str(packages["none"]), "--text", str(text), *ARGUMENTS, "-o", str(out),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # A shell's background job, as a test run may be, ignores SIGINT and hands that on.
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_needle_run_ends_in_the_same_files(packages, text, tmp_path, how):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(packages, text, whole)
    process.communicate()
    assert process.returncode == 0
    process = start(packages, text, cut)
    log = cut / "needle.cells.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and log.read_text().count("\n") >= 3:
            process.send_signal(how)
            break
        time.sleep(0.01)
    process.communicate()
    assert process.returncode in (-how, 130)
    kept = log.read_text().splitlines()
    assert 3 <= len(kept) < 12
    assert not (cut / "needle.json").exists()
    with log.open("a") as stream:  # as if killed while writing a line
        stream.write('{"key": "half a li')
    process = start(packages, text, cut)
    process.communicate()
    assert process.returncode == 0
    for name in ("needle.json", "needle.png", "needle.html", "needle.cells.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    # What was finished was not measured again.
    assert log.read_text().splitlines()[: len(kept)] == kept


def test_a_sweep_over_dask_workers_ends_in_the_same_files(packages, text, tmp_path):
    folders = [tmp_path / "here", tmp_path / "spread"]
    for folder, more in zip(folders, ([], ["--dask", "local:2"]), strict=True):
        invoke(
            "needle", packages["yarn"], packages["none"], "--text", text, *ARGUMENTS, "-o",
            folder, *more,
        )  # fmt: skip
    for name in ("needle.json", "needle.png", "needle.html"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_another_grid_in_the_same_directory_measures_only_what_is_missing(
    packages, text, tmp_path, monkeypatch
):
    from ctx_export.evaluation import needle_run

    measured = []

    def counted(job):
        measured.append((job.cell.length, job.cell.depth))
        return needle_run.measure_job(job)

    monkeypatch.setattr(needle_run, "spread", lambda _, jobs, how: map(counted, jobs))
    common = ("needle", packages["yarn"], "--text", text, "--keys", 1, "-o", tmp_path)
    invoke(*common, "--lengths", "200", "--depths", "0,100")
    invoke(*common, "--lengths", "200,300", "--depths", "0,50")
    assert measured == [(200, 0.0), (200, 1.0), (200, 0.5), (300, 0.0), (300, 0.5)]
    invoke(*common, "--lengths", "200", "--depths", "0", "--form", "natural")
    assert measured[5:] == [(200, 0.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["perplexity", "yarn", "--text", "EMPTY", "--lengths", "200"], "is empty: name a file"),
        (["perplexity", "yarn", "--text", "TEXT", "--lengths", "2k"], "over the 1024 tokens that"),
        (["perplexity", "yarn", "--text", "TEXT", "--lengths", "x"], "is not a size"),
        (["perplexity", "yarn", "--text", "TEXT", "--lengths", ","], "no length given"),
        (["perplexity", "yarn", "--text", "NONE", "--lengths", "200"], "cannot be read"),
        (["perplexity", "other", "--text", "TEXT", "--lengths", "200"], "does not fit its model"),
        (["perplexity", "bare", "--text", "TEXT", "--lengths", "200"], "has no tokenizer.json"),
        (["perplexity", "yarn", "yarn", "--text", "TEXT", "--lengths", "200"], "is given twice"),
        (["perplexity", "yarn", "--text", "SHORT", "--lengths", "200"], "give a longer text"),
        (
            ["perplexity", "streaming", "--text", "TEXT", "--lengths", "200", "--transformers",
             "demo"],
            "which transformers lacks",
        ),
        (
            ["perplexity", "yarn", "--text", "TEXT", "--lengths", "200", "-o", "EMPTY/out"],
            "cannot be written: Not a directory",
        ),
        (
            ["advise", "demo", "--target", "1k", "--text", "TEXT", "-o", "EMPTY/out"],
            "cannot be written: Not a directory",
        ),
        (["needle", "yarn", "--lengths", "2k"], "over the 1024 tokens that"),
        (["needle", "yarn", "--lengths", "50"], "needle, question and answer alone"),
        (["needle", "yarn", "--lengths", "200", "--depths", "a"], "give percentages"),
        (["needle", "yarn", "--lengths", "200", "--text", "EMPTY"], "is empty"),
        (["needle", "yarn", "--lengths", "200", "--form", "poem"], "must be one of pass-key"),
        (["needle", "EMPTY", "--lengths", "200"], "is not a package"),
        (["advise", "demo", "--target", "200", "--text", "TEXT"], "is not beyond the 256"),
        (["advise", "demo", "--target", "64k", "--text", "TEXT"], "give a longer text"),
        (
            ["advise", "demo", "--target", "1k", "--text", "TEXT", "--methods", "yran"],
            "unknown method 'yran'",
        ),
        (
            ["advise", "demo", "--target", "1k", "--text", "TEXT", "--factors", "0.5"],
            "--factors is '0.5'",
        ),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_exit_2(packages, text, tmp_path, arguments, message):
    places = {"TEXT": text, **packages}
    for name, content in (("EMPTY", " \n"), ("SHORT", "import os\n")):
        places[name] = tmp_path / name
        places[name].write_text(content)
    if "other" in arguments or "bare" in arguments:
        places["other"] = places["bare"] = tmp_path / "package"
        shutil.copytree(packages["yarn"], tmp_path / "package")
        tokenizer = tmp_path / "package" / "tokenizer.json"
        raw = json.loads(tokenizer.read_text())
        raw["model"]["vocab"]["\u0120"] = 5000  # the space, of a model with more tokens
        tokenizer.write_text(json.dumps(raw))
        if "bare" in arguments:
            tokenizer.unlink()
    places["EMPTY/out"] = places["EMPTY"] / "out"
    result = CliRunner().invoke(main, [str(places.get(part, part)) for part in arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_advice_is_the_smallest_factor_that_holds(tmp_path):
    """At 512 tokens: yarn holds where it stretches enough, linear never does (demo/README)."""
    result = CliRunner().invoke(
        main,
        ["advise", "demo", "--target", "512", "--text", str(HELDOUT), "--methods", "linear,yarn",
         "--factors", "1.2,2,3,4", "--windows", "12", "--keys", "1", "-o", str(tmp_path)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "advise.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["advise.json", "recipe.yaml"]
    held = {(t["method"], t["factor"]): t["holds"] for t in found["trials"]}
    assert not any(held[("linear", factor)] for factor in (1.2, 2.0, 3.0, 4.0))
    assert not held[("yarn", 1.2)] and found["best"]["method"] == "yarn"
    best = found["best"]["factor"]
    assert [f for m, f in held if m == "yarn"] == [f for f in (1.2, 2.0, 3.0, 4.0) if f <= best]
    recipe = build_recipe({}, file=tmp_path / "recipe.yaml")
    assert (recipe.method, recipe.target, recipe.factor) == ("yarn", 512, best)


def test_nothing_holding_exits_1(tmp_path):
    result = CliRunner().invoke(
        main,
        ["advise", "demo", "--target", "1k", "--text", str(HELDOUT), "--methods", "linear",
         "--factors", "4", "--windows", "2", "--keys", "1"],
    )  # fmt: skip
    assert result.exit_code == 1 and "nothing holds" in result.stdout
