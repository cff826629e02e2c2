from __future__ import annotations

import errno
import json
import logging
import sys

import click
import pytest
from click.testing import CliRunner

from ctx_export.cli.common import Size, command, echo_json, json_option, terminal_progress
from ctx_export.core.errors import UserError, ValidationFailed
from ctx_export.core.progress import SilentProgress


def invoke(error: BaseException | None, *arguments: str):
    @command("ctx-test")
    @click.option("--length", type=Size())
    @click.option("--sinks", type=Size(zero=True))
    @json_option
    def main(length: int | None, sinks: int | None, as_json: bool) -> None:
        if error is not None:
            raise error
        click.echo(f"{length} {sinks} {as_json}")

    return CliRunner().invoke(main, arguments)


def test_success_exits_0():
    result = invoke(None, "--length", "128k", "--sinks", "0", "--json")
    assert (result.exit_code, result.stdout) == (0, "131072 0 True\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("bad\nthing"), 2, "error: bad thing\n"),
        (ValidationFailed("off by 3"), 1, "error: off by 3\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            2,
            "error: No space left on device (/x): free some space or choose another directory "
            "with -o\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/from", None, "/to"),
            2,
            "error: No space left on device (/to): free some space or choose another directory "
            "with -o\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_are_one_line_and_their_code(error, code, line):
    result = invoke(error)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.lstrip("\n") == line


@pytest.mark.parametrize("error", [KeyError("x"), OSError(errno.EIO, "I/O error")])
def test_a_bug_is_not_swallowed(error):
    result = invoke(error)
    assert result.exception is error


def test_a_bug_shows_its_traceback_in_a_process(run_python):
    code = (
        "from ctx_export.cli.common import command\n"
        "@command('ctx-test')\n"
        "def main(): raise KeyError('x')\n"
        "main()"
    )
    done = run_python(code)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'x'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nope"], "error: No such option '--nope' (see ctx-test --help)\n"),
        (["extra"], "error: Got unexpected extra argument (extra) (see ctx-test --help)\n"),
        (
            ["--length", "many"],
            "error: --length 'many' is not a size: write a number of tokens such as 131072 or "
            "128k\n",
        ),
        (
            ["--length", "0"],
            "error: --length '0' is not a size: write a number of tokens such as 131072 or 128k\n",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exits_2(arguments, line):
    result = invoke(None, *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", line)


def test_version_names_the_command():
    result = invoke(None, "--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("ctx-test ")


def test_json_refuses_what_json_has_not(capsys):
    echo_json({"a": [1, 2.5, None]})
    assert json.loads(capsys.readouterr().out) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        echo_json({"a": float("nan")})


def test_warnings_of_the_library_are_lines_on_stderr(run_python):
    code = (
        "import logging\n"
        "from ctx_export.cli.common import command\n"
        "@command('ctx-test')\n"
        "def main(): logging.getLogger('ctx_export.x').warning('bfloat16 %s', 'twin')\n"
        "main()"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "warning: bfloat16 twin\n")


def test_progress_is_silent_in_a_pipe(capsys):
    with terminal_progress() as progress:
        assert isinstance(progress, SilentProgress)
        progress.stage("tracing")
        progress.update(1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_draws_on_a_terminal_and_tells_a_failure(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    def work() -> None:
        with terminal_progress() as progress:
            progress.stage("tracing")
            progress.update(1, 5)
            progress.stage("building")
            raise UserError("no space")

    with pytest.raises(UserError):
        work()
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line.split("\r")[-1] for line in err.split("\n")]
    assert "1/5" in err
    assert lines[0].startswith("  tracing ")
    assert lines[1].startswith("  building ")
    assert "failed after" in lines[1]


@pytest.fixture(autouse=True)
def restore_logging():
    logger = logging.getLogger("ctx_export")
    handlers, propagate = list(logger.handlers), logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
