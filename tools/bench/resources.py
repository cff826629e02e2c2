"""What the compiler made of the kernels: registers, stack and spills, for every architecture.

    python -m tools.bench.resources            # a table of the library that `make setup` built
    python -m tools.bench.resources --json docs/benchmarks/resources-2026-11-25.json

Reads the assembler's reports that the build keeps beside its object files (*.ptxas); nothing is
compiled or run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

BUILD = Path(__file__).resolve().parents[2] / "build" / "plugins"
KERNELS: dict[str, int] = {
    # Head dimensions 64, 80, 96, 128 and 256 in float16 and bfloat16, for keys of sinks and a
    # window and for keys in parts.
    "attendPrefill": 20,
    "attendDecode": 20,  # likewise
    "attendScalar": 12,  # float32: 64, 128 and 256, for few rows and many, likewise
    "writeCache": 6,  # three element types, packed or not
    "mergeSplits": 1,
    "poolBlocks": 3,  # three element types
    "writeBlocks": 1,
    "averageBlocks": 3,  # three element types
    "scoreBlocks": 9,  # three element types at head dimensions 64, 128 and 256
    "chooseBlocks": 1,
    "groupBlocksMatrix": 6,  # head dimensions 64, 128 and 256 in float16 and bfloat16
    "groupBlocksScalar": 3,  # float32: 64, 128 and 256
    "attendBlocksMatrix": 10,  # as attendPrefill
    "attendBlocksScalar": 3,  # float32: 64, 128 and 256
    "rotateHeads": 6,  # as writeCache
    "frequenciesAtLength": 1,
}
_ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<architecture>[^']+)'")
_STACK = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
)
_REGISTERS = re.compile(r"Used (?P<registers>\d+) registers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Of one instantiation of a kernel: registers a thread, bytes of stack and of spills."""

    kernel: str
    symbol: str
    architecture: str
    registers: int
    stack: int
    spills: int


def parse(report: str) -> list[Resources]:
    """The kernels of an assembler's report: entry, stack and registers follow one another.

    Raises ValueError if an entry is not followed by both.
    """
    found: list[Resources] = []
    entry: re.Match[str] | None = None
    stack: re.Match[str] | None = None
    for line in report.splitlines():
        if match := _ENTRY.search(line):
            if entry:
                raise ValueError(f"the report of {entry['name']} has no line of registers")
            entry, stack = match, None
        elif match := _STACK.search(line):
            stack = match
        elif entry and (match := _REGISTERS.search(line)):
            if stack is None:
                raise ValueError(f"the report of {entry['name']} has no line of its stack")
            found.append(_resources(entry, stack, int(match["registers"])))
            entry = None
    return found


def _resources(entry: re.Match[str], stack: re.Match[str], registers: int) -> Resources:
    name = entry["name"]
    return Resources(
        kernel=next((kernel for kernel in KERNELS if kernel in name), name),
        symbol=name,
        architecture=entry["architecture"],
        registers=registers,
        stack=int(stack["stack"]),
        spills=int(stack["stores"]) + int(stack["loads"]),
    )


def read(build: Path) -> list[Resources]:
    """Of every object file under a build directory; empty where none keeps a report."""
    reports = sorted(build.rglob("*.ptxas"))
    return [found for report in reports for found in parse(report.read_text())]


def table(resources: Iterable[Resources]) -> list[str]:
    """Lines: of each kernel and architecture the range of registers, the most stack and spills."""
    groups: dict[tuple[str, int], list[Resources]] = {}
    for found in resources:
        architecture = int(found.architecture.removeprefix("sm_"))
        groups.setdefault((found.kernel, architecture), []).append(found)
    lines = [
        f"{'kernel':<20} {'sm':>4} {'variants':>8} {'registers':>10} {'stack':>6} {'spills':>7}"
    ]
    for (kernel, architecture), group in sorted(groups.items()):
        registers = [found.registers for found in group]
        lines.append(
            f"{kernel:<20} {architecture:>4} {len(group):>8} "
            f"{f'{min(registers)}-{max(registers)}':>10} "
            f"{max(found.stack for found in group):>6} {max(found.spills for found in group):>7}"
        )
    return lines


@click.command(help=__doc__)
@click.option("--build", type=click.Path(path_type=Path), default=BUILD, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="write every variant here")
def main(build: Path, output: Path | None) -> None:
    found = read(build)
    if not found:
        raise click.UsageError(f"{build} holds no *.ptxas: build the library there (make setup)")
    click.echo("\n".join(table(found)))
    if output:
        output.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
