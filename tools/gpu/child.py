"""One part of the measurements in a process of its own, so that a crash leaves the others.

python -m tools.gpu.child PART --library PATH --rows FILE --seconds N [--quick]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from tools.gpu.part import Part
from tools.gpu.parts import PARTS, part_named
from tools.gpu.processes import run_limited
from tools.gpu.rows import OUT_OF_TIME, Row, append_row, filled, is_ours, read_rows

_GRACE_SECONDS = 10.0  # for the case that is under way at the deadline
_BETWEEN = " / "  # case and side in the line that a child prints as it begins with them
_CASE_SECONDS = 0.4
_QUICK_CASE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class PartResult:
    """Every planned row of a part. `reason`: how its process failed; empty where it did not."""

    rows: list[Row]
    seconds: float
    reason: str = ""


def run_part(part: Part, library: Path, quick: bool, seconds: float, rows: Path) -> PartResult:
    """The part in a child process that gets `seconds` and writes to the file `rows`."""
    command = child_command(part, library, quick, seconds, rows)
    return collect(part, command, seconds, quick, rows)


def child_command(part: Part, library: Path, quick: bool, seconds: float, rows: Path) -> list[str]:
    command = [sys.executable, "-m", "tools.gpu.child", part.name]
    command += ["--library", str(library), "--rows", str(rows), "--seconds", f"{seconds:.1f}"]
    return command + ["--quick"] * quick


def collect(part: Part, command: list[str], seconds: float, quick: bool, rows: Path) -> PartResult:
    """What `command` wrote to `rows`, and a row for each measurement that it did not make.

    Time that runs out is no failure, unless it was our kernel that did not come back.
    """
    started = time.monotonic()
    finished = run_limited(command, max(0.0, seconds) + _GRACE_SECONDS)
    reason = finished.failure
    if finished.status is None:
        case, _, side = finished.output.strip().rpartition("\n")[2].partition(_BETWEEN)
        reason = f"stuck in {case}, {side}" if is_ours(side) else ""
    missing = "the part's process failed" if reason else OUT_OF_TIME
    found = filled(part.name, part.planned(quick), read_rows(rows), missing)
    return PartResult(rows=found, seconds=time.monotonic() - started, reason=reason)


@click.command()
@click.argument("name", type=click.Choice([part.name for part in PARTS]))
@click.option("--library", type=click.Path(path_type=Path), required=True)
@click.option("--rows", type=click.Path(path_type=Path), required=True)
@click.option("--seconds", type=float, required=True)
@click.option("--quick", is_flag=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
def main(name: str, library: Path, rows: Path, seconds: float, quick: bool, device: str) -> None:
    """Measure the part NAME; on a CPU, with the host library, its figures mean nothing."""
    started = time.monotonic()
    from tools.gpu.compare import Bench
    from tools.gpu.kernels import Kernels
    from tools.gpu.timing import CudaTimer, WallTimer

    part = part_named(name)
    case_seconds = _QUICK_CASE_SECONDS if quick else _CASE_SECONDS
    bench = Bench(
        kernels=Kernels(library),
        timer=CudaTimer(case_seconds) if device == "cuda" else WallTimer(1),
        device=device,
        dtype="bfloat16",
        deadline=started + seconds,
        emit=partial(append_row, rows),
        begin=lambda case, side: print(case, side, sep=_BETWEEN, flush=True),
    )
    part.run(bench, part.chosen(quick))


if __name__ == "__main__":
    main()
