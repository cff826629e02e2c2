"""What the compiler made of the kernels; oracle: its own report, kept beside the object files.

The library that `make setup` builds is compiled for every architecture it ships for.
"""

from __future__ import annotations

import pytest

from tools.bench.resources import BUILD, KERNELS, Resources, parse, read, table

ARCHITECTURES = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120")
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z13attendPrefillv' for 'sm_80'
ptxas info    : Function properties for _Z13attendPrefillv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
ptxas info    : Compiling entry function '_Z11rotateHeadsv' for 'sm_120'
ptxas info    : Function properties for _Z11rotateHeadsv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 632 bytes cmem[0]
"""


@pytest.fixture(scope="module")
def resources() -> list[Resources]:
    found = read(BUILD)
    if not found:
        pytest.skip("the library was not compiled here: make setup")
    return found


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_compiled_for_every_architecture(resources, kernel):
    for architecture in ARCHITECTURES:
        count = sum(r.kernel == kernel and r.architecture == architecture for r in resources)
        assert count == KERNELS[kernel], architecture


def test_no_kernel_is_unknown_here(resources):
    assert {r.kernel for r in resources} == set(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_kernel_spills_or_keeps_a_stack(resources, kernel):
    assert [r for r in resources if r.kernel == kernel and (r.stack or r.spills)] == []


def test_report_is_read_line_by_line():
    spilling, plain = parse(REPORT)
    assert (spilling.kernel, spilling.architecture) == ("attendPrefill", "sm_80")
    assert (spilling.registers, spilling.stack, spilling.spills) == (255, 16, 20)
    assert (plain.kernel, plain.architecture) == ("rotateHeads", "sm_120")
    assert (plain.registers, plain.stack, plain.spills) == (40, 0, 0)


def test_report_with_lines_missing_is_refused():
    lines = REPORT.splitlines()
    with pytest.raises(ValueError, match="_Z13attendPrefillv has no line of registers"):
        parse("\n".join(lines[:4] + lines[5:]))
    with pytest.raises(ValueError, match="_Z13attendPrefillv has no line of its stack"):
        parse("\n".join(lines[:3] + lines[4:]))


def test_table_has_a_line_for_each_kernel_and_architecture():
    assert [line.split() for line in table(parse(REPORT))[1:]] == [
        ["attendPrefill", "80", "1", "255-255", "16", "20"],
        ["rotateHeads", "120", "1", "40-40", "0", "0"],
    ]
