"""Builds the plugin library for this machine's GPU, tests it, measures it and writes a record.

    python -m tools.gpu [--out docs/benchmarks] [--quick] [--library PATH] [--engine PACKAGE]

Needs a GPU, a CUDA build of PyTorch and nvcc or a built library; no network. It takes up to
--minutes; what they do not suffice for is recorded as not measured. Exit status 1: something
failed, and the record says what; 2: this cannot run here, and nothing is written.
"""

from __future__ import annotations

import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

from tools.gpu import machine
from tools.gpu.library import BuildFailed, NoLibrary, find_library
from tools.gpu.record import write
from tools.gpu.run import Options, run

_RESERVE_SECONDS = 15.0  # to stop the last part and write the record


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=machine.ROOT / "docs" / "benchmarks",
    show_default="docs/benchmarks",
    help="Where the record goes.",
)
@click.option("--quick", is_flag=True, help="A few cases of each part.")
@click.option(
    "--library",
    type=click.Path(path_type=Path),
    help="A built libctx_plugins.so. [default: built in build/gpu where nvcc is found]",
)
@click.option("--architecture", help="What to build for, such as 90a. [default: the GPU's]")
@click.option(
    "--engine", type=click.Path(path_type=Path), help="A package with a TensorRT-RTX engine."
)
@click.option("--commit", help="Of a copy without git. [default: the checkout's]")
@click.option(
    "--minutes", type=click.FloatRange(1), default=9.5, show_default=True, help="For all of it."
)
def main(
    out: Path,
    quick: bool,
    library: Path | None,
    architecture: str | None,
    engine: Path | None,
    commit: str | None,
    minutes: float,
) -> None:
    """Test and measure the kernels on this machine's GPU."""
    deadline = time.monotonic() + minutes * 60 - _RESERVE_SECONDS
    if (reason := machine.missing()) is not None:
        _stop(reason)
    try:
        seconds = deadline - time.monotonic()
        found = find_library(library, architecture or machine.compute_capability(), seconds)
    except NoLibrary as error:
        _stop(str(error))
    except BuildFailed as error:
        raise click.ClickException(str(error)) from None
    record = run(
        Options(
            library=found,
            command=shlex.join(["python", "-m", "tools.gpu", *sys.argv[1:]]),
            commit=commit or machine.commit(),
            date=datetime.date.today().isoformat(),
            quick=quick,
            engine=engine,
            seconds=deadline - time.monotonic(),
        ),
        click.echo,
    )
    for path in write(record, out):
        click.echo(f"wrote {path}")
    failures = record.failures()
    for text in failures:
        click.echo(f"failed: {text}", err=True)
    sys.exit(1 if failures else 0)


def _stop(reason: str) -> NoReturn:
    click.echo(f"error: {reason}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
