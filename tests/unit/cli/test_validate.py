from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ctx_export import demo
from ctx_export.cli.validate import main
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import Manifest
from ctx_export.validate import validation
from ctx_export.validate.report import ValidationReport
from ctx_export.validate.rows import Row
from tests.unit.runtime.fakes import manifest

HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "onnx_ir", "transformers", "yaml")
ROW = Row(
    position=1023,
    last=1023,
    compared=1,
    how="probe",
    max_error=1e-6,
    mean_error=1e-7,
    limit=1e-3,
    transformers=2e-5,
    own_table=3e-6,
)
GOOD = ValidationReport(
    facts={"runtime": "onnxruntime, CPU"},
    rule="error at most 0.001 of the logit scale",
    max_context=1024,
    rows=(ROW,),
    frequency_error=0.0,
    multiplier_error=0.0,
)


@dataclass
class Library:
    """Stands for `validation.run`: keeps what the command hands over."""

    report: ValidationReport = GOOD
    calls: list[dict[str, Any]] = field(default_factory=list)

    def run(self, package: Path, reference: Path, **options: Any) -> ValidationReport:
        options.pop("progress").stage("running PyTorch")
        self.calls.append({"package": package, "reference": reference, **options})
        return self.report


@pytest.fixture
def library(monkeypatch) -> Library:
    library = Library()
    monkeypatch.setattr(validation, "run", library.run)
    return library


@pytest.fixture
def package(tmp_path) -> Path:
    manifest().save(tmp_path)
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_package_that_agrees_prints_the_table_and_exits_0(library, package):
    result = invoke(package, "--reference", "demo")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == GOOD.lines()
    assert library.calls == [
        {
            "package": package,
            "reference": demo.path(),
            "tolerance": None,
            "budget": None,
            "need_engine": False,
        }
    ]


def test_every_option_reaches_the_library(library, package, tmp_path):
    arguments = ["--tolerance", "1e-4", "--budget", "1k", "--engine"]
    assert invoke(package, "--reference", tmp_path, *arguments).exit_code == 0
    (call,) = library.calls
    assert call["reference"] == tmp_path
    assert (call["tolerance"], call["budget"], call["need_engine"]) == (1e-4, 1024, True)


def test_json_is_one_document(library, package):
    result = invoke(package, "--reference", "demo", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == GOOD.to_json()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_package_that_does_not_agree_prints_its_report_and_exits_1(library, package, options):
    library.report = replace(GOOD, rows=(replace(ROW, max_error=float("inf")),))
    result = invoke(package, "--reference", "demo", *options)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {package} does not agree with PyTorch: see {package}/report.md\n"
    )
    if options:
        assert json.loads(result.stdout) == library.report.to_json()
    else:
        assert result.stdout.splitlines() == library.report.lines()


@pytest.mark.parametrize("passed", [True, False])
def test_report_and_manifest_are_written_whatever_the_verdict(library, package, passed):
    if not passed:
        library.report = replace(GOOD, problems=("NaN",))
    invoke(package, "--reference", "demo")
    assert json.loads((package / "report.json").read_text())["passed"] is passed
    assert (package / "report.md").read_text() == library.report.markdown()
    written = Manifest.load(package)
    assert written == replace(manifest(), validation=library.report.summary)
    assert written.validation is not None and written.validation["passed"] is passed


def test_a_refusal_exits_2_and_writes_nothing(package, monkeypatch):
    def refuse(*_: Any, **__: Any) -> ValidationReport:
        raise UserError("reference x has heads 2,\nthe package 4")

    monkeypatch.setattr(validation, "run", refuse)
    result = invoke(package, "--reference", "demo")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: reference x has heads 2, the package 4\n"
    assert [path.name for path in package.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["PACKAGE"], "Missing option '--reference'"),
        ([], "Missing argument 'OUT'"),
        (["PACKAGE", "--reference", "/nowhere/x"], "/nowhere/x is not a checkpoint directory"),
        (["nothing", "--reference", "demo"], "nothing is not a package: it has no manifest.json"),
        (["PACKAGE", "--reference", "demo"], f"reference {demo.path()} has layers 5, the"),
        (
            ["PACKAGE", "--reference", "demo", "--tolerance", "x"],
            "Invalid value for '--tolerance'",
        ),
        (["PACKAGE", "--reference", "demo", "--budget", "0"], "--budget '0' is not a size"),
        (["PACKAGE", "--reference", "demo", "--budget", "few"], "--budget 'few' is not a size"),
    ],
)
def test_bad_input_is_one_line_and_exits_2(arguments, line, package):
    """The package is of a model that the demo is not."""
    result = invoke(*(package if a == "PACKAGE" else a for a in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {line}")
    assert result.stderr.count("\n") == 1
    assert [path.name for path in package.iterdir()] == ["manifest.json"]


def demo_manifest() -> Manifest:
    model = {
        "family": "llama",
        "layers": 5,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
        "vocab": 2048,
        "original_context": 256,
    }
    return manifest(model=model, scaling={"inv_freq": [1.0] * 32, "multiplier": 1.0})


@pytest.mark.parametrize("tolerance", ["0", "-1", "1", "nan", "inf"])
def test_a_tolerance_that_decides_nothing_is_refused_before_any_work(
    tmp_path, monkeypatch, tolerance
):
    monkeypatch.setattr(validation, "reference_logits", None)
    demo_manifest().save(tmp_path)
    result = invoke(tmp_path, "--reference", "demo", "--tolerance", tolerance)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: tolerance is {float(tolerance):g}: give a share of")


def test_help_imports_nothing_heavy(run_python):
    code = (
        "import sys; from ctx_export.cli.validate import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('loaded:', sorted(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
