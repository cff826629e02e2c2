"""What `make demo` runs: the demo model to 128k with an engine, then text from two packages.

    python -m tools.demo.run [--output DIR]

Every step is a command that the README shows; a step that fails ends the demo with its status.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import click

from ctx_export.core.manifest import Manifest
from tools.demo.pass_key import ANSWER, prompt

_BIN = Path(sys.executable).parent
_LONG, _SHORT = "yarn-128k", "yarn-1k"
_PASS_KEY_TOKENS = 1000  # of a package whose context is 1024, four times the trained 256


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True
)
def main(output: Path) -> None:
    """Export the demo model twice, check the packages and generate text from them."""
    started = time.monotonic()
    output.mkdir(exist_ok=True)
    long, short = output / _LONG, output / _SHORT
    run("ctx-export", "--method", "yarn", "--target", "128k", "-o", str(long), "--force")
    check_plugins(long)
    run("ctx-inspect", str(long))
    run("ctx-run", str(long), "--prompt", "The function returns", "--max-new-tokens", "32")
    options = ("--target", "1k", "--engine", "none", "-o", str(short), "--force")
    run("ctx-export", "--method", "yarn", *options)
    ask_pass_key(short)
    click.echo(f"\ndemo finished in {time.monotonic() - started:.0f} s")


def run(command: str, *arguments: str, capture: bool = False) -> str:
    """One of the project's commands, echoed as typed; ends the demo where it fails."""
    click.echo(f"\n$ {shlex.join([command, *map(_short, arguments)])}")
    sys.stdout.flush()
    finished = subprocess.run(
        [str(_BIN / command), *arguments],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        sys.exit(finished.returncode)
    return finished.stdout or ""


def _short(argument: str) -> str:
    """A long prompt is shown by its two ends."""
    return argument if len(argument) <= 200 else f"{argument[:40]} … {argument[-100:]}"


def check_plugins(package: Path) -> None:
    """There are as many plugin layers as sites: an attention a layer, which rotates, too."""
    manifest = Manifest.load(package)
    if manifest.engine is None:
        sys.exit("no engine was built: the demo needs TensorRT-RTX, which make setup installs")
    layers = len(manifest.engine["plugin_layers"])
    sites = int(manifest.model["layers"])
    if layers != sites:
        sys.exit(f"{layers} plugin layers for {sites} sites")


def ask_pass_key(package: Path) -> None:
    question = prompt(_PASS_KEY_TOKENS)
    answer = run(
        "ctx-run", str(package), "--prompt", question, "--max-new-tokens", "5", capture=True
    )
    click.echo(answer.rstrip("\n"))
    if ANSWER not in answer:
        sys.exit(f"the pass key is {ANSWER}; the answer does not hold it")
    click.echo(f"the pass key {ANSWER} was found across {_PASS_KEY_TOKENS} tokens")


if __name__ == "__main__":
    main()
