"""What the compiler made of the kernels; oracle: its own report, kept beside the object files.

The library that `make setup` builds is compiled for every architecture it ships for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {
    "attendPrefill": 10,  # head dimensions 64, 80, 96, 128 and 256 in float16 and bfloat16
    "attendDecode": 6,  # 64, 128 and 256
    "attendScalar": 6,  # 64, 128 and 256, for few rows and many
    "writeCache": 6,  # three element types, packed or not
    "mergeSplits": 1,
    "rotateHeads": 6,
}
ARCHITECTURES = {"sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120"}
_ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<architecture>[^']+)'")
_STACK = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
)


@dataclass(frozen=True, kw_only=True)
class Resources:
    kernel: str
    architecture: str
    stack: int
    spills: int


def reported(text: str) -> list[Resources]:
    """The kernels of a report; the stack's line follows the entry's it belongs to."""
    found = []
    name = architecture = ""
    for line in text.splitlines():
        if entry := _ENTRY.search(line):
            name, architecture = entry["name"], entry["architecture"]
        elif (stack := _STACK.search(line)) and name:
            kernel = next((kernel for kernel in KERNELS if kernel in name), name)
            found.append(
                Resources(
                    kernel=kernel,
                    architecture=architecture,
                    stack=int(stack["stack"]),
                    spills=int(stack["stores"]) + int(stack["loads"]),
                )
            )
            name = ""
    return found


@pytest.fixture(scope="module")
def resources() -> list[Resources]:
    reports = sorted((ROOT / "build" / "plugins").rglob("*.ptxas"))
    if not reports:
        pytest.skip("the library was not compiled here: make setup")
    return [found for report in reports for found in reported(report.read_text())]


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_compiled_for_every_architecture(resources, kernel):
    for architecture in ARCHITECTURES:
        count = sum(r.kernel == kernel and r.architecture == architecture for r in resources)
        assert count == KERNELS[kernel], architecture


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_kernel_spills_or_keeps_a_stack(resources, kernel):
    assert [r for r in resources if r.kernel == kernel and (r.stack or r.spills)] == []


def test_a_spilling_report_is_read_as_one():
    text = (
        "ptxas info    : Compiling entry function '_Z13attendPrefillv' for 'sm_80'\n"
        "ptxas info    : Function properties for _Z13attendPrefillv\n"
        "    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers\n"
    )
    assert reported(text) == [
        Resources(kernel="attendPrefill", architecture="sm_80", stack=16, spills=20)
    ]
