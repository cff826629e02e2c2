"""The worker protocol, with small Python programs in the builder's place."""

from __future__ import annotations

import os
import sys
import time

import pytest

from ctx_export.build.engine_process import Crashed, TimedOut, run_worker


class Recorded:
    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def stage(self, name: str) -> None:
        self.calls.append((name,))

    def update(self, done: int, total: int) -> None:
        self.calls.append((done, total))


def run(tmp_path, program: str, *, seconds: float = 30.0, progress=None):
    return run_worker(
        [sys.executable, "-c", program],
        environment=dict(os.environ),
        log=tmp_path / "log",
        time_limit_s=seconds,
        progress=progress or Recorded(),
    )


def test_progress_and_result_come_through_and_stderr_is_the_log(tmp_path):
    progress = Recorded()
    program = """if True:
        import sys
        print('{"stage": "parsing"}'); print('{"done": 1, "total": 2}')
        print("a warning", file=sys.stderr)
        print('{"result": {"bytes": 5}}')"""
    assert run(tmp_path, program, progress=progress) == {"bytes": 5}
    assert progress.calls == [("parsing",), (1, 2)]
    assert (tmp_path / "log").read_text() == "a warning\n"


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("import os; os.abort()", r"crashed \(SIGABRT\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "want of memory"),
        ("raise SystemExit(3)", r"exit status 3"),
        ("pass", r"exit status 0"),
        ("""print('{"result": {}}', flush=True); import os; os.abort()""", "SIGABRT"),
    ],
)
def test_a_worker_that_dies_is_described(tmp_path, program, how):
    with pytest.raises(Crashed, match=how):
        run(tmp_path, program)


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(60)",
        # Closing stdout early must not end the watch.
        "import os, time; os.close(1); time.sleep(60)",
    ],
)
def test_the_time_limit_stops_the_worker(tmp_path, program):
    pid_file = tmp_path / "pid"
    prologue = f"import os; open({str(pid_file)!r}, 'w').write(str(os.getpid())); "
    started = time.monotonic()
    with pytest.raises(TimedOut):
        run(tmp_path, prologue + program, seconds=1.5)
    assert time.monotonic() - started < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
