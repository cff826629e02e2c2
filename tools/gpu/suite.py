"""The tests marked gpu, and a few of them under compute-sanitizer."""

from __future__ import annotations

import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tools.gpu.library import tool
from tools.gpu.processes import run_limited

PASSED, TESTS_FAILED, NOT_RUN = "passed", "failed", "not run"
SANITIZERS = ("memcheck", "racecheck")
_SANITIZED = "device and (test_everything_at_once or test_in_place or test_sizes_around_a_block)"
_SANITIZER_EXIT = 66
_WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of a run of tests; `failures` name each failed test, `reason` says why a run has no counts
    or was cut short."""

    state: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: tuple[str, ...] = ()
    reason: str = ""


def run_tests(library: Path, seconds: float) -> Outcome:
    """Every test marked gpu, on `library`."""
    arguments = ["tests", "-m", "gpu"]
    if find_spec("xdist") is not None:
        arguments += ["-n", str(_WORKERS)]
    return _pytest([], library, arguments, seconds)


def run_sanitizer(check: str, library: Path, seconds: float) -> Outcome:
    """A few of the kernels' tests under compute-sanitizer's `check`."""
    sanitizer = tool("compute-sanitizer")
    if sanitizer is None:
        return Outcome(state=NOT_RUN, reason="compute-sanitizer is not installed")
    prefix = [sanitizer, "--tool", check, f"--error-exitcode={_SANITIZER_EXIT}"]
    return _pytest(prefix, library, ["tests/kernels", "-m", "gpu", "-k", _SANITIZED], seconds)


def _pytest(prefix: list[str], library: Path, arguments: list[str], seconds: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [*prefix, sys.executable, "-m", "pytest", *arguments, "-q"]
        command += [f"--plugin-library={library}", f"--junit-xml={report}"]
        command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
        finished = run_limited(command, seconds)
        if finished.status is None:
            return Outcome(state=NOT_RUN, reason=finished.failure)
        if not report.exists():
            reason = finished.failure or "pytest wrote no report"
            return Outcome(state=TESTS_FAILED, reason=reason)
        return read_report(report, finished.failure)


def read_report(report: Path, failure: str) -> Outcome:
    """Counts of a JUnit file. `failure` is the command's own, whatever the file counts."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if suite is None:
        return Outcome(state=TESTS_FAILED, reason=f"{report.name} has no testsuite")
    counts = {
        name: int(suite.get(name, "0")) for name in ("tests", "errors", "failures", "skipped")
    }
    failed = counts["errors"] + counts["failures"]
    passed = counts["tests"] - failed - counts["skipped"]
    names = tuple(
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    )
    if not failure and not passed:
        failure = "no test ran"
    return Outcome(
        state=TESTS_FAILED if failure or failed else PASSED,
        passed=passed,
        failed=failed,
        skipped=counts["skipped"],
        failures=names,
        reason=failure,
    )
