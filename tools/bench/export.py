"""Cost of an export beside onnxruntime-genai's builder and plain torch.onnx.export.

    python -m tools.bench.export --environments DIR [--runs 3] [--json FILE]

DIR keeps the environment the peer is installed in, the checkpoints and, during a run, the outputs.
Each command runs in a process of its own, `runs` times in turn with the others; medians are shown.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from tools.bench.checkpoints import LARGE, SMALL, Shape, write_checkpoint
from tools.bench.measure import Cost, added_bytes, run

GENAI = "onnxruntime-genai==0.18.0"
GENAI_NEEDS = (
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "tokenizers",
    "torch==2.13.0",
    "transformers==5.23.0",
)
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to export: `command(checkpoint, out, scratch)` and the versions that matter."""

    name: str
    command: Callable[[Path, Path, Path], list[str]]
    versions: dict[str, str]


def ctx_export() -> Contender:
    def command(checkpoint: Path, out: Path, scratch: Path) -> list[str]:
        options = ["--method", "yarn", "--target", "128k", "--engine", "none", "--no-validate"]
        module = [sys.executable, "-m", "ctx_export.cli.export"]
        return [*module, str(checkpoint), *options, "-o", str(out)]

    names = ("ctx-export", "torch", "transformers", "onnx-ir")
    return Contender(
        name="ctx-export", command=command, versions={name: version(name) for name in names}
    )


def torch_onnx_export() -> Contender:
    def command(checkpoint: Path, out: Path, scratch: Path) -> list[str]:
        return [sys.executable, str(_HERE / "torch_onnx_export.py"), str(checkpoint), str(out)]

    names = ("torch", "transformers", "onnxscript")
    return Contender(
        name="torch.onnx.export",
        command=command,
        versions={name: version(name) for name in names},
    )


def genai_builder(environments: Path) -> Contender:
    """onnxruntime-genai's builder in an environment of its own; installs it the first time."""
    environment = environments / "onnxruntime-genai"
    python = environment / "bin" / "python"
    installed = environment / ".installed"
    if not installed.exists():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(python), "-m", "pip", "install", "-qq", GENAI, *GENAI_NEEDS]
        constraints = _HERE.parents[1] / "constraints.txt"
        subprocess.run([*pip, "-c", str(constraints)], check=True)
        installed.touch()

    def command(checkpoint: Path, out: Path, scratch: Path) -> list[str]:
        builder = [str(python), "-m", "onnxruntime_genai.models.builder"]
        paths = ["-m", str(checkpoint), "-i", str(checkpoint), "-o", str(out)]
        return [*builder, *paths, "-p", "fp32", "-e", "cpu", "-c", str(scratch)]

    found = {}
    for requirement in (GENAI, "onnxruntime", "transformers"):
        name = requirement.split("==")[0]
        code = f"import importlib.metadata as m; print(m.version({name!r}))"
        found[name] = subprocess.check_output([str(python), "-c", code], text=True).strip()
    return Contender(name="onnxruntime-genai builder", command=command, versions=found)


def measure(contender: Contender, shape: Shape, directory: Path) -> Cost:
    """One export into a fresh directory, which is removed again."""
    checkpoint = write_checkpoint(shape, directory / "checkpoints" / shape.name)
    scratch = directory / "run"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    out = scratch / "out"
    try:
        command = contender.command(checkpoint, out, scratch / "cache")
        seconds, peak = run(command, scratch / "log")
        return Cost(seconds=seconds, peak_bytes=peak, disk_bytes=added_bytes(out, checkpoint))
    finally:
        shutil.rmtree(scratch)


def median(costs: list[Cost]) -> Cost:
    """The median of each figure on its own."""
    return Cost(
        seconds=statistics.median(cost.seconds for cost in costs),
        peak_bytes=int(statistics.median(cost.peak_bytes for cost in costs)),
        disk_bytes=int(statistics.median(cost.disk_bytes for cost in costs)),
    )


def row(shape: Shape, contender: Contender, costs: list[Cost]) -> str:
    middle = median(costs)
    spread = f"{min(c.seconds for c in costs):.1f} to {max(c.seconds for c in costs):.1f}"
    return (
        f"{shape.name:<6} {contender.name:<26} {middle.seconds:8.1f} {spread:>16} "
        f"{middle.peak_bytes / 1e9:8.2f} {middle.disk_bytes / 1e6:10.1f}"
    )


HEADER = (
    f"{'model':<6} {'exporter':<26} {'time s':>8} {'spread s':>16} {'peak GB':>8} {'disk MB':>10}"
)


@click.command()
@click.option("--environments", type=click.Path(path_type=Path), required=True)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--model", type=click.Choice(["all", "0.44B", "8B"]), default="all")
@click.option("--peers/--no-peers", default=True, help="Measure the other exporters too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(environments: Path, runs: int, model: str, peers: bool, json_file: Path | None) -> None:
    """Measure exports of a 0.44B and an 8B checkpoint in bfloat16."""
    directory = environments.resolve()
    ours = ctx_export()
    others = [genai_builder(directory), torch_onnx_export()] if peers else []
    plan = [(SMALL, [ours, *others]), (LARGE, [ours])]
    click.echo(f"{platform.platform()}, {platform.processor() or platform.machine()}")
    for contender in (ours, *others):
        click.echo(f"{contender.name}: {_versions(contender)}")
    click.echo(HEADER)
    results: list[dict[str, Any]] = []
    for shape, contenders in plan:
        if model not in ("all", shape.name):
            continue
        costs: dict[str, list[Cost]] = {contender.name: [] for contender in contenders}
        for _ in range(runs):
            for contender in contenders:
                costs[contender.name].append(measure(contender, shape, directory))
        for contender in contenders:
            click.echo(row(shape, contender, costs[contender.name]))
            results.append(_record(shape, contender, costs[contender.name]))
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=1) + "\n")


def _versions(contender: Contender) -> str:
    return ", ".join(f"{name} {number}" for name, number in contender.versions.items())


def _record(shape: Shape, contender: Contender, costs: list[Cost]) -> dict[str, Any]:
    return {
        "model": shape.name,
        "parameters": shape.parameters(),
        "exporter": contender.name,
        "versions": contender.versions,
        "median": asdict(median(costs)),
        "runs": [asdict(cost) for cost in costs],
    }


if __name__ == "__main__":
    main()
