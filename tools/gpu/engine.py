"""Whether a TensorRT-RTX engine is deserialised and runs on this GPU, tried in a child process.

    python -m tools.gpu.engine STAGES.jsonl [--package DIRECTORY]

writes a line for each stage that succeeds, so that a crash shows how far it came.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click

from tools.gpu.processes import run_limited

NOT_TRIED, RAN, FAILED = "not tried", "ran", "failed"
STAGES = ("package", "deserialised", "ran", "compared")
_TOKENS = 32
Tell = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """`stages` are the ones that succeeded, each with what it found."""

    state: str
    stages: tuple[tuple[str, str], ...] = ()
    reason: str = ""


def try_engine(package: Path | None, seconds: float) -> Attempt:
    """With an exported package that has an engine, or the demo's, built here."""
    if find_spec("tensorrt_rtx") is None:
        return Attempt(state=NOT_TRIED, reason="tensorrt_rtx is not installed")
    command = [sys.executable, "-m", "tools.gpu.engine"]
    if package is not None:
        command += ["--package", str(package.resolve())]
    return run_attempt(command, seconds)


def run_attempt(command: Sequence[str], seconds: float) -> Attempt:
    """`command` with the file for its stages as last argument; however it ends is a result."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "stages"
        finished = run_limited([*command, str(told)], seconds)
        stages = _read(told)
    reason = finished.failure
    return Attempt(state=FAILED if reason else RAN, stages=stages, reason=reason)


def _read(told: Path) -> tuple[tuple[str, str], ...]:
    if not told.exists():
        return ()
    pairs = [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]
    return tuple((stage, text) for stage, text in pairs)


@click.command()
@click.argument("told", type=click.Path(path_type=Path))
@click.option("--package", type=click.Path(path_type=Path), help="A package with an engine.")
def main(told: Path, package: Path | None) -> None:
    """The attempt itself."""

    def tell(stage: str, text: str) -> None:
        with told.open("a", encoding="utf-8") as file:
            file.write(json.dumps([stage, text]) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        attempt(package or _exported(Path(folder) / "package"), tell)


def _exported(directory: Path) -> Path:
    from ctx_export import export

    export(
        "demo",
        directory,
        method="yarn",
        target="1k",
        engine="tensorrt-rtx",
        validate={"enabled": False},
    )
    return directory


def attempt(package: Path, tell: Tell) -> None:
    """Logits of a few tokens by the engine and by onnxruntime."""
    import numpy as np

    from ctx_export import open_session

    tell("package", f"engine of {(package / 'model.engine').stat().st_size / 1e6:.1f} MB")
    tokens = np.arange(3, 3 + _TOKENS)[None]
    with open_session(package, "tensorrt-rtx") as session:
        tell("deserialised", "with its plugin library")
        found = [session.feed(tokens), session.feed([[7]])]
        tell("ran", f"{_TOKENS} tokens and one more")
    with open_session(package, "ort") as session:
        expected = [session.feed(tokens), session.feed([[7]])]
    error = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    scale = max(float(np.abs(b).max()) for b in expected)
    tell("compared", f"largest difference from onnxruntime {error / scale:.1e} of the logit scale")


if __name__ == "__main__":
    main()
