"""The demo by every method, before and after a short fine-tuning: curves and heat maps.

    python -m tools.eval.demo perplexity [-o docs/evaluation] [--checkpoints build/finetuned]
    python -m tools.eval.demo needle     [-o docs/evaluation] [--checkpoints build/finetuned]

Every method that takes a factor has 4, whatever the length: four times the 256 tokens that the
demo was trained on. Every package is made for 4k tokens, or for any number. `linear`, `ntk` and
`yarn` come twice, the second time after the fine-tuning of `tools.finetune` at 1k tokens, which is
run first where its checkpoints are missing. longrope, proportional and theta are left out: they
have parameters of a model's own, which nobody has searched for or trained the demo with.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from ctx_export import demo
from ctx_export.cli.common import group, terminal_progress
from ctx_export.evaluation import charts, pages
from ctx_export.evaluation.needle import NeedleSetting
from ctx_export.evaluation.needle_run import NeedleRun
from ctx_export.evaluation.needle_run import run as run_needles
from ctx_export.evaluation.perplexity import PerplexitySetting
from ctx_export.evaluation.perplexity_run import run as run_perplexity
from ctx_export.evaluation.report_files import save
from ctx_export.evaluation.subject import Opening
from ctx_export.scaling import find
from tools.bench.packages import export_packages

FACTOR, TARGET, TUNED_LENGTH = 4.0, 4096, 1024
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
SCALING = (
    "none",
    "linear",
    "ntk",
    "ntk-by-parts",
    "yarn",
    "llama3",
    "dynamic-ntk",
    "dynamic-yarn",
)
# Windows that leave some of the 256 positions out: distances that far are hardly trained.
POLICIES: dict[str, dict[str, Any]] = {
    "streaming": {"method": "streaming", "window": 200},
    "memory": {"method": "memory", "window": 184},
    "landmark": {
        "cache": "landmark",
        "target": TARGET,
        "window": 60,
        "landmark_block": 8,
        "landmark_topk": 12,
    },
    "self-extend": {"method": "self-extend", "target": TARGET},
    "dual-chunk": {"method": "dual-chunk", "target": TARGET},
}
TUNED = ("linear", "ntk", "yarn")
_EDGES = {"low_freq_factor": 1, "high_freq_factor": 4}  # of llama3, as published


def wanted() -> dict[str, dict[str, Any]]:
    """The options of every package of the demo as it is."""
    made: dict[str, dict[str, Any]] = {}
    for name in SCALING:
        made[name] = {"method": name, "target": TARGET}
        if find(name).uses_factor:
            made[name]["factor"] = FACTOR
    made["llama3"]["scaling"] = _EDGES
    return {**made, **POLICIES}


def tuned(folder: Path) -> dict[str, Path]:
    """The fine-tuned checkpoints by method, made where they are missing."""
    places = {name: folder / f"{name}-1k" for name in TUNED}
    for name, place in places.items():
        if not place.exists():
            folder.mkdir(parents=True, exist_ok=True)
            click.echo(
                f"fine-tuning the demo with {name}: python {' '.join(command(name, place))}"
            )
            subprocess.run([sys.executable, *command(name, place)], check=True)
    return places


def command(method: str, place: Path) -> list[str]:
    """The fine-tuning of one method."""
    return [
        *("-m", "tools.finetune", "demo", "--method", method, "--target", str(TUNED_LENGTH)),
        *("--text", "demo-train", "--schedule", "cosine", "--pass-keys", "0.25"),
        *("-o", str(place)),
    ]


def exported(folder: Path, checkpoints: Path | None) -> tuple[Path, ...]:
    """Every package, before and after."""
    common = {"max_chunk": 256}
    options = {name: {**given, **common} for name, given in wanted().items()}
    made = dict(export_packages("demo", folder, options))
    if checkpoints is not None:
        for name, place in tuned(checkpoints).items():
            label = f"{name} fine-tuned"
            own = {label: {"target": TARGET, **common}}
            made |= export_packages(str(place), folder, own)
    return tuple(made.values())


_OPTIONS = (
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("docs/evaluation"),
        show_default=True,
    ),
    click.option(
        "--checkpoints",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("build/finetuned"),
        show_default=True,
        help="Where the fine-tuned checkpoints are kept.",
    ),
    click.option("--untuned", is_flag=True, help="Leave the fine-tuned checkpoints out."),
    click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True),
)


def _options(function: Any) -> Any:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@group("python -m tools.eval.demo")
def main() -> None:
    """Curves and heat maps of the demo by every method."""


@main.command("perplexity")
@click.option("--windows", type=click.IntRange(min=2), default=16, show_default=True)
@_options
def perplexity(output: Path, checkpoints: Path, untuned: bool, threads: int, windows: int) -> None:
    """Perplexity of held-out text against length."""
    setting = PerplexitySetting(lengths=LENGTHS, stride=64, windows=windows)
    with tempfile.TemporaryDirectory() as folder, terminal_progress() as progress:
        packages = exported(Path(folder), None if untuned else checkpoints)
        report = run_perplexity(
            packages, demo.path() / "heldout.txt", setting, _opening(threads), progress=progress
        )
    save(
        output,
        "perplexity",
        report.to_json(),
        lambda: charts.perplexity_chart(report),
        lambda: pages.perplexity_page(report),
    )
    click.echo("\n".join(report.lines()))


@main.command("needle")
@click.option("--keys", type=click.IntRange(min=1), default=4, show_default=True)
@_options
def needle(output: Path, checkpoints: Path, untuned: bool, threads: int, keys: int) -> None:
    """Pass keys found by depth and length."""
    setting = NeedleSetting(lengths=LENGTHS[1:], depths=(0.0, 0.25, 0.5, 0.75, 1.0), keys=keys)
    with tempfile.TemporaryDirectory() as folder, terminal_progress() as progress:
        asked = NeedleRun(
            packages=exported(Path(folder), None if untuned else checkpoints),
            text=demo.path() / "heldout.txt",
            setting=setting,
            opening=_opening(threads),
        )
        report = run_needles(asked, Path(folder) / "cells", progress=progress)
    save(
        output,
        "needle",
        report.to_json(),
        lambda: charts.needle_chart(report),
        lambda: pages.needle_page(report),
    )
    click.echo("\n".join(report.lines()))


def _opening(threads: int) -> Opening:
    return Opening(threads=threads, providers=("CPUExecutionProvider",))


if __name__ == "__main__":
    main()
