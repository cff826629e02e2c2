from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ctx_export import cache
from ctx_export.cli.export import main
from ctx_export.core.recipe import Recipe
from ctx_export.scaling import names

HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "transformers", "yaml")


@dataclass
class Result:
    output: Path
    manifest: dict[str, Any]
    lines: list[str]


@dataclass
class Plan:
    recipe: Recipe

    def describe(self) -> str:
        return f"plan for {self.recipe.model}"

    def to_json(self) -> dict[str, Any]:
        return {"model": self.recipe.model}


@dataclass
class Library:
    """Stands for `ctx_export.pipeline`: keeps what the command hands over."""

    recipes: list[Recipe] = field(default_factory=list)
    planned: list[Recipe] = field(default_factory=list)

    def run(self, recipe: Recipe, progress: Any) -> Result:
        progress.stage("tracing")
        self.recipes.append(recipe)
        assert recipe.output is not None
        return Result(recipe.output, {"method": recipe.method}, ["exported", "done"])

    def plan(self, recipe: Recipe) -> Plan:
        self.planned.append(recipe)
        return Plan(recipe)


@pytest.fixture
def library(monkeypatch) -> Library:
    library = Library()
    module = types.ModuleType("ctx_export.pipeline")
    module.run, module.plan = library.run, library.plan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ctx_export.pipeline", module)
    return library


def test_out_of_the_box(library):
    result = CliRunner().invoke(main, ["--method", "yarn", "--target", "128k"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "exported\ndone\n", "")
    expected = Recipe(method="yarn", target=131072, output=Path("demo-yarn-128k"))
    assert library.recipes == [expected]


def test_every_option_reaches_the_recipe(library, tmp_path):
    arguments = (
        "some/model --method pi --target 1m --factor 8 --original-context 4k --sinks 4 "
        "--window 4092 --precision fp16 --engine tensorrt-rtx --max-batch 3 --max-chunk 256 "
        f"--no-validate --tolerance 1e-4 --force -o {tmp_path}/out"
    )
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 0, result.output
    assert library.recipes == [
        Recipe(
            model="some/model",
            output=tmp_path / "out",
            method="linear",
            target=1 << 20,
            factor=8.0,
            original_context=4096,
            sinks=4,
            window=4092,
            precision="fp16",
            engine="tensorrt-rtx",
            max_batch=3,
            max_chunk=256,
            validate=False,
            tolerance=1e-4,
            force=True,
        )
    ]


def test_recipe_file_set_and_command_line(library, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("method: yarn\ntarget: 8k\nsinks: 4\nvalidate: {enabled: false}\n")
    arguments = ["--recipe", str(path), "--set", "sinks=2", "--set", "target=4k", "--target", "2k"]
    result = CliRunner().invoke(main, [*arguments, "--set", "scaling.beta_fast=16"])
    assert result.exit_code == 0, result.output
    recipe = library.recipes[0]
    assert (recipe.method, recipe.target, recipe.sinks) == ("yarn", 2048, 2)
    assert recipe.parameters == {"beta_fast": 16.0}
    assert recipe.validate is False


def test_json_is_one_document(library):
    result = CliRunner().invoke(main, ["--method", "yarn", "--json", "-o", "out"])
    assert json.loads(result.stdout) == {"output": "out", "manifest": {"method": "yarn"}}


def test_dry_run_plans_and_exports_nothing(library):
    result = CliRunner().invoke(main, ["--method", "yarn", "--dry-run"])
    assert (result.stdout, library.recipes) == ("plan for demo\n", [])
    result = CliRunner().invoke(main, ["--method", "yarn", "--dry-run", "--json"])
    assert json.loads(result.stdout) == {"model": "demo"}
    assert len(library.planned) == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--method", "yarm"], "unknown method 'yarm', did you mean yarn? (choose one of "),
        (["--method", "landmarks"], "unknown method 'landmarks', did you mean landmark"),
        (["--target", "a lot"], "--target 'a lot' is not a size: write a number of tokens"),
        (["--target", "-5"], "--target '-5' is not a size"),
        (["--factor", "x"], "Invalid value for '--factor': 'x' is not a valid float"),
        (["--factor", "nan"], "factor is nan: it must be a finite number at least 1"),
        (["--precision", "int8"], "precision is 'int8': it must be one of fp32, fp16, bf16"),
        (["--engine", "trt"], "engine is 'trt': it must be one of auto, none, tensorrt"),
        (["--tolerance", "0"], "tolerance is 0.0: it must be a finite number above 0"),
        (["--set", "x"], "--set 'x' is not KEY=VALUE"),
        (["--recipe", "none.yaml"], "recipe none.yaml cannot be read: No such file"),
        (["a", "b"], "Got unexpected extra argument (b)"),
    ],
)
def test_bad_input_is_one_line_and_exits_2(arguments, line, library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {line}")
    assert result.stderr.count("\n") == 1
    assert (library.recipes, list(tmp_path.iterdir())) == ([], [])


def test_help_lists_every_method_and_engine():
    # Lines are broken at hyphens too.
    text = "".join(CliRunner().invoke(main, ["--help"]).stdout.split())
    for name in (*names(), *cache.names(), "tensorrt-rtx", "bf16"):
        assert name in text


@pytest.mark.parametrize("module", ["export", "inspect", "plan", "eval"])
def test_help_imports_nothing_heavy(module, run_python):
    code = (
        f"import sys; from ctx_export.cli.{module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('loaded:', sorted(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"
