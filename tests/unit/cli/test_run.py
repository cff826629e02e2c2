"""ctx-run over onnxruntime with a model that continues the alphabet. Oracle: the alphabet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ctx_export.cli import run
from ctx_export.runtime import opening
from tests.unit.cli import counting_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return counting_package.write(tmp_path)


def ctx_run(package: Path, *arguments: str, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(run.main, [str(package), *arguments], input=text)


def test_it_streams_text(package: Path) -> None:
    result = ctx_run(package, "--prompt", "abc", "--max-new-tokens", "4")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "defg\n", "")


def test_it_reads_the_prompt_from_a_file(package: Path) -> None:
    (package / "prompt.txt").write_text("naïve x", encoding="utf-8")
    result = ctx_run(
        package, "--prompt-file", str(package / "prompt.txt"), "--max-new-tokens", "4"
    )
    assert (result.exit_code, result.stdout) == (0, "yzab\n")


def test_it_reads_the_prompt_from_standard_input(package: Path) -> None:
    result = ctx_run(package, "--prompt-file", "-", "--max-new-tokens", "1", text="x")
    assert (result.exit_code, result.stdout) == (0, "y\n")


def test_it_prints_figures(package: Path) -> None:
    result = ctx_run(package, "--prompt", "abc", "--json", "--stop", "hi", "--stop", "fg")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    seconds = [figures.pop(name) for name in ("prefill_seconds", "decode_seconds")]
    speed = figures.pop("tokens_per_second")
    assert min(seconds) > 0 and speed > 0
    assert figures == {
        "prompt_tokens": 3,
        "new_tokens": 4,
        "cache_bytes": 2 * 30 * 4,
        "finish": "stop",
        "text": "de",
    }


@pytest.mark.parametrize(
    ("prompt", "options", "text", "finish"),
    [
        ("abc", ["--max-new-tokens", "2"], "de", "length"),
        ("wx", [], "y", "eos"),
        ("a" * 27 + "b", [], "cde", "context"),
    ],
)
def test_it_says_why_it_ended(
    tmp_path: Path, prompt: str, options: list[str], text: str, finish: str
) -> None:
    counting_package.write(tmp_path, eos="z")
    result = ctx_run(tmp_path, "--prompt", prompt, "--json", *options)
    figures = json.loads(result.stdout)
    assert (figures["text"], figures["finish"]) == (text, finish)


def test_a_seed_makes_drawing_repeatable(package: Path) -> None:
    options = ["--prompt", "a", "--temperature", "9", "--max-new-tokens", "20", "--json", "--seed"]
    texts = [json.loads(ctx_run(package, *options, seed).stdout)["text"] for seed in "112"]
    assert texts[0] == texts[1] != texts[2] and texts[0] != "bcdefghijklmnopqrstu"


@pytest.mark.parametrize("cut", [["--top-k", "1"], ["--top-p", "0.001"]])
def test_drawing_from_one_token_is_greedy(package: Path, cut: list[str]) -> None:
    options = ["--prompt", "a", "--temperature", "9", "--max-new-tokens", "5", *cut]
    assert ctx_run(package, *options).stdout == "bcdef\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "neither of --prompt and --prompt-file given"),
        (["--prompt", "a", "--prompt-file", "b"], "both of --prompt and --prompt-file given"),
        (["--prompt-file", "missing.txt"], "--prompt-file missing.txt cannot be read"),
        (["--prompt-file", "-"], "--prompt-file - cannot be read: 'utf-8' codec can't decode"),
        (["--prompt", ""], "the prompt has no tokens"),
        (
            ["--prompt", "a" * 31],
            "the prompt has 31 tokens, the package's maximum context is 30: shorten it, or export "
            "with a larger --target",
        ),
        (
            ["--prompt", "a", "--backend", "onnx"],
            "backend 'onnx' is unknown: use ort, tensorrt, tensorrt-rtx",
        ),
        (["--prompt", "a", "--backend", "tensorrt-rtx"], "the package has no engine"),
        (["--prompt", "a", "--threads", "0"], "threads is 0: give at least 1"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1"),
        (["--prompt", "a", "--top-k", "-1"], "top-k is -1"),
        (["--prompt", "a", "--top-p", "0"], "top-p is 0"),
        (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens '0' is not a size"),
    ],
)
def test_wrong_input_is_one_line(package: Path, arguments: list[str], message: str) -> None:
    result = ctx_run(package, *arguments, text=b"\xff\xfe")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_package_without_a_tokenizer_is_one_line(package: Path) -> None:
    (package / "tokenizer.json").unlink()
    result = ctx_run(package, "--prompt", "a")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {package} has no tokenizer.json: copy the checkpoint's there, or feed token ids "
        "through open_session\n"
    )


def test_a_directory_that_is_no_package_is_one_line(tmp_path: Path) -> None:
    result = ctx_run(tmp_path, "--prompt", "a")
    assert result.exit_code == 2 and "is not a package" in result.stderr


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    """As `ctx-run … | head -c 10` does; the text comes while it is made."""
    counting_package.write(tmp_path, capacity=1 << 20)
    command = [sys.executable, "-m", "ctx_export.cli.run", str(tmp_path), "--prompt", "abc"]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "1m"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None and process.stderr is not None
    with process, process.stderr:
        with process.stdout:
            assert process.stdout.read(10) == b"defghijklm"
        assert process.stderr.read() == b""
    assert process.returncode == 1  # click's


def test_the_command_lists_every_backend() -> None:
    assert run.BACKENDS == opening.BACKENDS
