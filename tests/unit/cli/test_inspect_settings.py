"""`ctx-inspect` as a gate: what is asked about a checkpoint, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ctx_export.cli.inspect import main
from tests.golden.rope_cases import BETAS, CASES, OF_MISTRAL, YARN

DEMO = Path(__file__).parents[3] / "exporter/ctx_export/demo"
# 2 · 2 KV heads · 64 dims · 2 bytes, in each of 5 layers
BYTES_PER_TOKEN = 2 * 2 * 64 * 2 * 5


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def report(*arguments: object) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(inspect(*arguments, "--json").stdout)
    return result


@pytest.fixture
def checkpoint(tmp_path):
    def make(config: dict[str, Any]) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


def test_plain_settings_lose_nothing():
    result = inspect(DEMO)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "lost           nothing"
    assert result.stdout.count("honours rope_type default") == 6


def test_a_misread_setting_exits_with_one_and_says_what(checkpoint):
    result = inspect(checkpoint(OF_MISTRAL["yarn"]), "--runtime", "onnxruntime-genai")
    assert result.exit_code == 1
    assert "onnxruntime-genai 0.18.0 MISREAD: truncate: the ramp's ends" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("onnxruntime-genai: truncate misread")


def test_only_the_named_runtimes_count(checkpoint):
    path = checkpoint(CASES["yarn in rope_parameters"])
    assert inspect(path).exit_code == 1
    result = inspect(path, "--runtime", "vllm", "--runtime", "transformers")
    assert result.exit_code == 0
    assert "onnxruntime-genai" not in result.stdout


def test_a_refusal_counts_when_strict(checkpoint):
    path = checkpoint(OF_MISTRAL["dynamic"])
    ask = (path, "--runtime", "onnxruntime-genai")
    assert inspect(*ask).exit_code == 0
    assert "onnxruntime-genai 0.18.0 refuses rope_type" in inspect(*ask).stdout
    assert inspect(*ask, "--strict").exit_code == 1


def test_an_unknown_runtime_exits_with_two_and_names_the_known_ones():
    result = inspect(DEMO, "--runtime", "tgi")
    assert result.exit_code == 2
    assert "llama-cpp, onnxruntime-genai, tensorrt-llm, transformers" in result.stderr


def test_contradictory_settings_exit_with_two(checkpoint):
    path = checkpoint({**CASES["linear"], "rope_parameters": {**YARN, **BETAS}})
    result = inspect(path)
    assert result.exit_code == 2
    assert "contradict" in result.stderr


def test_a_method_shows_tables_caches_and_the_config_that_says_so():
    """Frequencies of d 64, base 1e4 and factor 4; the highest is kept, the lowest divided."""
    found = report(DEMO, "--method", "yarn", "--target", "1k")
    before, after = found["change"]["before"], found["change"]["after"]
    lowest = 1e4 ** (-62 / 64)
    assert (before["highest"], before["lowest"]) == pytest.approx((1.0, lowest))
    assert (after["highest"], after["lowest"]) == pytest.approx((1.0, lowest / 4))
    assert after["multiplier"] == pytest.approx(1.1386294361)  # 0.1 · ln 4 + 1
    assert before["cache_bytes_per_sequence"] == 256 * BYTES_PER_TOKEN
    assert after["cache_bytes_per_sequence"] == 1024 * BYTES_PER_TOKEN
    assert found["change"]["config"]["max_position_embeddings"] == 1024
    entries = found["change"]["config"]["rope_parameters"]
    assert (entries["rope_type"], entries["factor"]) == ("yarn", 4.0)
    assert entries["original_max_position_embeddings"] == 256
    assert "tensorrt-llm: rope_parameters dropped" in found["lost"]


def test_the_config_of_a_method_has_the_checkpoints_own_spelling(checkpoint):
    found = report(checkpoint(CASES["linear"]), "--method", "yarn", "--factor", "2")
    assert found["change"]["config"]["rope_scaling"]["rope_type"] == "yarn"
    assert "rope_parameters" not in found["change"]["config"]
    assert "rope_theta" not in found["change"]["config"]


def test_a_base_of_its_own_is_said_at_the_top_level_where_the_checkpoint_does(checkpoint):
    found = report(checkpoint(CASES["plain"]), "--method", "ntk", "--factor", "4")
    config = found["change"]["config"]
    assert config["rope_theta"] == pytest.approx(1e4 * 4 ** (64 / 62))
    assert {f["verdict"] for f in found["runtimes"]} == {"honoured"}


def test_parameters_of_a_method_are_judged_too(checkpoint):
    ask = (checkpoint(CASES["plain"]), "--method", "yarn", "--factor", "4")
    runtime = ("--runtime", "llama-cpp")
    assert inspect(*ask, *runtime).exit_code == 0
    result = inspect(*ask, *runtime, "--set", "scaling.attention_factor=1.0")
    assert result.exit_code == 1
    assert "DROPPED: attention_factor" in result.stdout


@pytest.mark.parametrize("method", ["streaming", "sliding-window", "dynamic-yarn"])
def test_a_method_that_no_config_can_say_is_told_so(method):
    options = ("--target", "1k") if method == "dynamic-yarn" else ()
    result = inspect(DEMO, "--method", method, *options)
    assert result.exit_code == 0, result.output
    assert "config.json    cannot say this: no " in result.stdout
    assert "nothing was compared" in result.stdout.splitlines()[-1]


def test_a_bad_target_exits_with_two():
    result = inspect(DEMO, "--method", "yarn", "--target", "128")
    assert result.exit_code == 2
    assert "below the original context" in result.stderr


def test_windows_and_refused_decoders_are_shown(checkpoint):
    path = checkpoint({**OF_MISTRAL["plain"], "sliding_window": 64})
    assert "windows        1 layers see 64 tokens back" in inspect(path).stdout
    path = checkpoint({**CASES["plain"], "quantization_config": {"quant_method": "gptq"}})
    assert "export         cannot be exported: " in inspect(path).stdout


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("manifest.json", "--runtime=vllm", "whose method is baked in: leave --runtime out"),
        ("manifest.json", "--method=yarn", "leave --method and its options out"),
        ("config.json", "--reference=x", "its own reference: leave --reference out"),
        ("model.onnx", "--runtime=vllm", "judged by a config.json: leave --runtime out"),
    ],
)
def test_an_option_without_meaning_for_the_path_exits_with_two(name, option, message, tmp_path):
    (tmp_path / name).write_text("{}")
    result = inspect(tmp_path / name if name.endswith("onnx") else tmp_path, option)
    assert result.exit_code == 2
    assert message in result.stderr
