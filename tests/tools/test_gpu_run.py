"""A run of tools.gpu: shares of time, failures kept apart, and what it does without a GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ctx_export
from tests.kernels.host_build import build
from tools.gpu import __main__ as command
from tools.gpu import engine, library, machine, run, suite
from tools.gpu.budget import Budget, isolated
from tools.gpu.child import PartResult, child_command, collect
from tools.gpu.library import Library, NoLibrary, find_library
from tools.gpu.part import Part
from tools.gpu.parts import PARTS, part_named
from tools.gpu.processes import run_limited
from tools.gpu.rows import MEASURED, NOT_MEASURED, Row
from tools.gpu.suite import NOT_RUN, PASSED, TESTS_FAILED, Outcome, read_report

ROOT = Path(__file__).resolve().parents[2]


def python(text):
    return [sys.executable, "-c", text]


# Shares of time


def test_time_is_shared_by_weight_and_what_is_left_goes_on():
    clock = [100.0]
    budget = Budget(60.0, {"a": 1, "b": 2, "c": 3}, now=lambda: clock[0])
    assert budget.take("a") == 10.0
    clock[0] += 5.0  # 5 s less than it might have taken
    assert budget.take("b") == 55.0 * 2 / 5
    clock[0] += 50.0  # far more
    assert budget.take("c") == 5.0
    clock[0] += 9.0
    assert budget.left() == 0.0


def test_a_failure_is_told_and_stays_alone():
    told = []

    def fail():
        raise OSError("no")

    assert isolated("part", fail, 3, lambda *what: told.append(what)) == 3
    assert isolated("part", lambda: 4, 3, lambda *what: told.append(what)) == 4
    ((name, error),) = told
    assert name == "part" and str(error) == "no"


# Child processes


@pytest.mark.parametrize(
    ("text", "status", "failure"),
    [
        ("print('fine')", 0, ""),
        ("import sys; print('so'); sys.exit(3)", 3, "exit status 3: so"),
        ("import os; os.kill(os.getpid(), 11)", -11, "crashed (SIGSEGV)"),
    ],
)
def test_however_a_process_ends_is_known(text, status, failure):
    finished = run_limited(python(text), 60)
    assert (finished.status, finished.failure) == (status, failure)


def test_a_process_over_its_time_goes_with_all_that_it_started(tmp_path):
    alive = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(2.5); pathlib.Path({str(alive)!r}).touch()"
    text = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)\n"
    )
    finished = run_limited(python(text), 1.5)
    assert finished.status is None and finished.output == "begun\n"
    assert finished.failure.startswith("not finished after 2 s")
    time.sleep(2)
    assert not alive.exists()


def test_the_checkout_is_importable_in_a_process_that_did_not_install_it():
    finished = run_limited([sys.executable, "-S", "-c", "import ctx_export, tools.gpu"], 60)
    assert finished.failure == ""


# A part of the measurements


class OneCase:
    label, sides = "c", ("ours", "other")


PART = Part(
    name="part", title="Part", weight=1, cases=[OneCase], quick=[OneCase], run=lambda *_: None
)
FIGURES = {"median_ms": 1.0, "p10_ms": 1.0, "p90_ms": 1.0, "rate": 2.0}
ROW = Row(part="part", case="c", side="ours", state=MEASURED, **FIGURES)
WRITES = (
    "import pathlib, sys\n"
    "from tools.gpu.rows import MEASURED, Row, append_row\n"
    "path = pathlib.Path(sys.argv[1])\n"
    f"append_row(path, Row(part='part', case='c', side='ours', state=MEASURED, **{FIGURES}))\n"
)


def collected(tmp_path, text, seconds=30.0):
    rows = tmp_path / "rows"
    return collect(PART, [*python(WRITES + text), str(rows)], seconds, False, rows)


def test_rows_of_a_part_that_finishes_early_are_completed(tmp_path):
    result = collected(tmp_path, "")
    assert result.reason == "" and result.rows[0] == ROW
    assert [(row.side, row.reason) for row in result.rows[1:]] == [("other", "time")]


def test_a_part_that_crashes_keeps_what_it_measured(tmp_path):
    result = collected(tmp_path, "import os; os.kill(os.getpid(), 6)")
    assert result.reason == "crashed (SIGABRT)" and result.rows[0] == ROW
    assert result.rows[1].reason == "the part's process failed"


@pytest.mark.parametrize(("side", "reason"), [("other", ""), ("ours, x", "stuck in c, ours, x")])
def test_a_part_that_does_not_come_back_names_its_kernel(tmp_path, monkeypatch, side, reason):
    monkeypatch.setattr("tools.gpu.child._GRACE_SECONDS", 2.0)
    wait = f"import time; print('c / {side}', flush=True); time.sleep(60)"
    result = collected(tmp_path, wait, seconds=1.0)
    assert result.reason == reason and result.rows[0] == ROW
    assert result.rows[1].state == NOT_MEASURED


def test_a_part_is_measured_in_a_process_of_its_own(tmp_path):
    """Streaming's sizes are small enough for the host library; its answers are checked there."""
    pytest.importorskip("torch")
    part, rows = part_named("streaming"), tmp_path / "rows"
    host = build("ctx_kernels_host")
    command = child_command(part, host, True, 300.0, rows)
    result = collect(part, [*command, "--device", "cpu"], 300.0, True, rows)
    assert result.reason == ""
    assert [(row.case, row.state) for row in result.rows] == [
        (case, MEASURED) for case, _ in part.planned(True)
    ]


def test_every_part_plans_each_case_and_side_once():
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    for part in PARTS:
        for quick in (False, True):
            planned = part.planned(quick)
            assert planned and len(set(planned)) == len(planned)
        assert set(part.planned(True)) <= set(part.planned(False)) or part.name == "graph"


# Tests and sanitizers

JUNIT = """<testsuites><testsuite tests="5" errors="1" failures="1" skipped="2">
<testcase classname="a" name="one"><failure/></testcase>
<testcase classname="a" name="two"/>
<testcase classname="b" name="three"><error/></testcase>
<testcase classname="b" name="four"><skipped/></testcase>
<testcase classname="b" name="five"><skipped/></testcase>
</testsuite></testsuites>"""


def report(tmp_path, text):
    path = tmp_path / "report.xml"
    path.write_text(text)
    return path


def test_failed_tests_are_counted_and_named(tmp_path):
    outcome = read_report(report(tmp_path, JUNIT), "exit status 1: …")
    assert (outcome.state, outcome.passed, outcome.failed, outcome.skipped) == (
        *(TESTS_FAILED, 1, 2, 2),
    )
    assert outcome.failures == ("a::one", "b::three")


@pytest.mark.parametrize(
    ("tests", "skipped", "failure", "state"),
    [(3, 1, "", PASSED), (3, 3, "", TESTS_FAILED), (3, 0, "exit status 66", TESTS_FAILED)],
)
def test_a_run_passes_where_something_ran_and_nothing_failed(
    tmp_path, tests, skipped, failure, state
):
    counts = f'tests="{tests}" errors="0" failures="0" skipped="{skipped}"'
    text = f"<testsuites><testsuite {counts}></testsuite></testsuites>"
    outcome = read_report(report(tmp_path, text), failure)
    assert outcome.state == state and bool(outcome.reason) == (state == TESTS_FAILED)


def test_the_sanitized_tests_exist_and_are_the_devices():
    arguments = ["tests/kernels", "-m", "gpu", "-k", suite._SANITIZED, "--collect-only", "-q"]
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    names = [line for line in listed.splitlines() if "::" in line]
    files = {line.partition("::")[0] for line in names}
    assert len(files) == 3 and all("[device" in line for line in names)


def test_a_sanitizer_that_is_not_there_is_not_run(monkeypatch):
    monkeypatch.setattr(suite, "tool", lambda name: None)
    outcome = suite.run_sanitizer("memcheck", Path("x.so"), 1.0)
    assert (outcome.state, outcome.reason) == (NOT_RUN, "compute-sanitizer is not installed")


# The engine


def test_an_engine_without_its_runtime_is_not_tried(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    attempt = engine.try_engine(None, 1.0)
    assert (attempt.state, attempt.reason) == ("not tried", "tensorrt_rtx is not installed")


@pytest.mark.parametrize(
    ("text", "state", "reason"),
    [
        ("", "ran", ""),
        ("import os; os.kill(os.getpid(), 11)", "failed", "crashed (SIGSEGV)"),
        ("raise OSError('no engine')", "failed", "OSError: no engine"),
    ],
)
def test_an_engine_that_crashes_leaves_its_stages(text, state, reason):
    told = 'import sys; open(sys.argv[1], "w").write(\'["package", "24 MB"]\\n\')\n'
    attempt = engine.run_attempt(python(told + text), 30.0)
    assert attempt.stages == (("package", "24 MB"),)
    assert attempt.state == state and attempt.reason.endswith(reason)


class FakeSession:
    """Logits of 1, of the engine a little more."""

    def __init__(self, backend):
        self._value = 1.0 + (backend == "tensorrt-rtx") / 1024

    def feed(self, tokens):
        return np.full((1, len(tokens[0]), 3), self._value, np.float32)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_an_engine_that_runs_is_compared_with_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.setattr(ctx_export, "open_session", lambda path, backend: FakeSession(backend))
    (tmp_path / "model.engine").write_bytes(b"0" * 1_500_000)
    told = []
    engine.attempt(tmp_path, lambda *what: told.append(what))
    assert [stage for stage, _ in told] == list(engine.STAGES)
    assert told[0][1] == "engine of 1.5 MB"
    assert told[3][1] == "largest difference from onnxruntime 9.8e-04 of the logit scale"


# The library


def test_a_given_library_is_taken(tmp_path):
    path = tmp_path / "libctx_plugins.so"
    with pytest.raises(NoLibrary, match="which is no file"):
        find_library(path, "90", 1.0)
    path.write_bytes(b"x")
    found = find_library(path, "90", 1.0)
    assert (found.path, found.origin) == (path, "given: libctx_plugins.so")


def test_without_a_compiler_the_installed_library_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "tool", lambda name: None)
    monkeypatch.setattr(library, "INSTALLED", tmp_path / "libctx_plugins.so")
    with pytest.raises(NoLibrary, match="neither nvcc nor a built library"):
        find_library(None, "90", 1.0)
    library.INSTALLED.write_bytes(b"x")
    assert find_library(None, "90", 1.0).path == library.INSTALLED


def test_a_build_is_for_the_architecture_and_for_the_compiler(monkeypatch):
    monkeypatch.setattr(library, "tool", lambda name: f"/bin/{name}")
    configure, build = library.build_commands("/cuda/nvcc", "90a")
    assert configure[0] == build[0] == "/bin/cmake"
    assert {"-DCTX_CUDA_ARCHITECTURES=90a", "-DCMAKE_CUDA_COMPILER=/cuda/nvcc"} <= set(configure)
    assert str(ROOT / "build" / "gpu") in configure and str(ROOT / "build" / "gpu") in build


# The whole run


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Everything that takes a GPU replaced by what says that it was there."""

    def run_part(part, path, quick, seconds, rows):
        if part.name == "streaming":
            raise OSError("no")
        row = replace(ROW, part=part.name, case=part.name)
        return PartResult(rows=[row], seconds=seconds)

    monkeypatch.setattr(run, "run_part", run_part)
    monkeypatch.setattr(run, "run_tests", lambda path, seconds: Outcome(state=PASSED, passed=2))
    monkeypatch.setattr(run, "run_sanitizer", lambda *_: Outcome(state=NOT_RUN, reason="none"))
    monkeypatch.setattr(run, "try_engine", lambda *_: engine.Attempt(state="not tried"))
    monkeypatch.setattr(machine, "describe", lambda: {"device": "NVIDIA Test"})
    path = tmp_path / "libctx_plugins.so"
    path.write_bytes(b"x")
    return run.Options(
        library=Library(path=path, origin="given"),
        command="python -m tools.gpu",
        commit="0123456789ab",
        date="2026-11-25",
        quick=True,
        engine=None,
        seconds=100.0,
    )


def test_a_part_that_fails_leaves_the_others(options):
    record = run.run(options, lambda text: None)
    assert record.failures() == ["streaming: OSError: no"]
    assert [part.name for part in record.parts] == [part.name for part in PARTS]
    for part in record.parts:
        states = {row.state for row in part.rows}
        assert states == ({NOT_MEASURED} if part.name == "streaming" else {MEASURED})
    assert record.tests.passed == 2 and set(record.sanitizers) == set(suite.SANITIZERS)


def invoke(*arguments):
    return CliRunner().invoke(command.main, arguments)


def test_the_command_writes_its_record_and_exits_1_where_something_failed(
    options, monkeypatch, tmp_path
):
    monkeypatch.setattr(machine, "missing", lambda: None)
    monkeypatch.setattr(machine, "compute_capability", lambda: "90")
    given = ["--out", str(tmp_path / "out"), "--library", str(options.library.path)]
    finished = invoke(*given)
    assert finished.exit_code == 1 and "failed: streaming: OSError: no" in finished.output
    names = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert names == [".json", ".md"]
    monkeypatch.setattr(run, "run_part", lambda *_: PartResult(rows=[ROW], seconds=1.0))
    assert invoke(*given).exit_code == 0


def test_without_a_gpu_one_line_says_what_is_missing(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finished = invoke("--out", str(tmp_path / "out"))
    assert finished.exit_code == 2
    (line,) = finished.output.splitlines()
    assert line.startswith("error: PyTorch ") and "finds no CUDA GPU: run this" in line
    assert not (tmp_path / "out").exists()


def test_without_pytorch_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    finished = invoke("--out", str(tmp_path / "out"))
    assert (finished.exit_code, finished.output.count("\n")) == (2, 1)
    assert "PyTorch is not installed" in finished.output


def test_a_library_that_is_not_there_is_an_error_of_use(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "missing", lambda: None)
    monkeypatch.setattr(machine, "compute_capability", lambda: "90")
    finished = invoke("--library", str(tmp_path / "none.so"), "--out", str(tmp_path / "out"))
    assert finished.exit_code == 2 and not (tmp_path / "out").exists()
