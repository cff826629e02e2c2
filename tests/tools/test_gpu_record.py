"""A record's Markdown, file names and failures, from results written by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tools.gpu.engine import Attempt
from tools.gpu.record import PartRecord, Record, markdown, write
from tools.gpu.rows import FAILED, MEASURED, NOT_MEASURED, Row, append_row, filled, read_rows
from tools.gpu.suite import NOT_RUN, PASSED, TESTS_FAILED, Outcome


def measured(part, case, side, rate, **values):
    figures = {"median_ms": 2.0, "p10_ms": 1.5, "p90_ms": 3.25, "runs": 50, "unit": "TFLOP/s"}
    return Row(part=part, case=case, side=side, state=MEASURED, rate=rate, **(figures | values))


def part(name, title, *rows, reason=""):
    return PartRecord(
        name=name,
        title=title,
        seconds=12.0,
        rows=list(rows),
        reason=reason,
        clocks_before={"clocks.sm": "345 MHz"},
        clocks_after={"clocks.sm": "1980 MHz"},
    )


RECORD = Record(
    command="python -m tools.gpu --quick",
    date="2026-11-25",
    commit="0123456789ab",
    machine={"device": "NVIDIA H100 80GB HBM3", "driver": "580.1", "flashinfer": "not installed"},
    library={"origin": "built for sm_90 by nvcc", "sha256": "00"},
    tests=Outcome(state=PASSED, passed=392, skipped=2),
    sanitizers={"memcheck": Outcome(state=NOT_RUN, reason="compute-sanitizer is not installed")},
    engine=Attempt(
        state="failed",
        stages=(("package", "engine of 24.8 MB"),),
        reason="crashed (SIGSEGV): at | the end",
    ),
    parts=[
        part(
            "prefill",
            "Prefill, full causal",
            measured("prefill", "d128 32k batch 1", "ours", 400.0),
            Row(
                part="prefill",
                case="d128 32k batch 1",
                side="FlashInfer",
                state=NOT_MEASURED,
                reason="flashinfer is not installed",
            ),
        ),
        part(
            "windowed",
            "Prefill, 4 sinks + 1020 window",
            measured("windowed", "d128 32k batch 1", "ours, one call", 300.0, note="one"),
            measured("windowed", "d64 32k batch 1", "FlexAttention", 100.0),
        ),
        part(
            "decode",
            "Decode",
            measured("decode", "32k batch 1", "ours", 2550.4, unit="GB/s", share=0.8501),
        ),
        part(
            "streaming",
            "Streaming decode",
            measured("streaming", "position 2k batch 1", "ours", 1.0, median_ms=0.02),
            measured("streaming", "position 2^33 batch 1", "ours", 1.0, median_ms=0.021),
        ),
    ],
    errors=[],
    seconds=321.4,
)


def test_every_result_is_a_line_of_the_markdown():
    lines = markdown(RECORD).splitlines()
    assert lines[:5] == [
        "# NVIDIA H100 80GB HBM3, 2026-11-25",
        "",
        "```",
        "$ python -m tools.gpu --quick",
        "```",
    ]
    for line in (
        "| commit | 0123456789ab |",
        "| library | built for sm_90 by nvcc |",
        "| driver | 580.1 |",
        "| flashinfer | not installed |",
        "| tests marked gpu | 392 passed, 0 failed, 2 skipped |",
        "| memcheck | not run: compute-sanitizer is not installed |",
        "| TensorRT-RTX engine | failed: crashed (SIGSEGV): at \\| the end; "
        "package (engine of 24.8 MB) |",
        "## Prefill, full causal",
        "| d128 32k batch 1 | ours | 2.0000 | 1.5000 | 3.2500 | 50 | 400.0 TFLOP/s |  |  |",
        "| d128 32k batch 1 | FlashInfer | not measured (flashinfer is not installed) |"
        "  |  |  |  |  |  |",
        "| d128 32k batch 1 | ours, one call | 2.0000 | 1.5000 | 3.2500 | 50 | 300.0 TFLOP/s |  |"
        " one, 75.0% of full causal |",
        "| d64 32k batch 1 | FlexAttention | 2.0000 | 1.5000 | 3.2500 | 50 | 100.0 TFLOP/s |"
        "  |  |",
        "| 32k batch 1 | ours | 2.0000 | 1.5000 | 3.2500 | 50 | 2550.4 GB/s | 85.0% |  |",
        "Batch 1: the slowest position takes 1.050 times the fastest's time, of 2.",
        "Before: clocks.sm 345 MHz. After: clocks.sm 1980 MHz.",
    ):
        assert line in lines, line
    assert not RECORD.failures() and "**Failed:**" not in lines


def test_tables_have_as_many_cells_in_every_line():
    for block in markdown(RECORD).split("\n\n"):
        widths = {
            line.replace("\\|", "").count("|") for line in block.splitlines() if line[:1] == "|"
        }
        assert len(widths) <= 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"errors": ["rotation: OSError: no"]}, "rotation: OSError: no"),
        (
            {"tests": Outcome(state=TESTS_FAILED, passed=1, failed=2)},
            "tests: 2 failed",
        ),
        (
            {"sanitizers": {"racecheck": Outcome(state=TESTS_FAILED, reason="exit status 66")}},
            "racecheck: 0 failed exit status 66",
        ),
        (
            {"parts": [part("decode", "Decode", reason="crashed (SIGSEGV)")]},
            "decode: crashed (SIGSEGV)",
        ),
        (
            {
                "parts": [
                    part(
                        "decode",
                        "Decode",
                        Row(part="decode", case="c", side="ours", state=FAILED, reason="off"),
                    )
                ]
            },
            "decode, c, ours: off",
        ),
    ],
)
def test_what_failed_comes_first_and_decides(changed, said):
    record = replace(RECORD, **changed)
    assert record.failures() == [said]
    lines = markdown(record).splitlines()
    assert lines[lines.index("**Failed:**") + 2] == f"- {said}"


def test_a_record_is_two_files_named_by_day_and_device(tmp_path):
    data, text = write(RECORD, tmp_path / "new")
    assert data.name == "gpu-2026-11-25-h100-80gb-hbm3.json"
    assert text.name == "gpu-2026-11-25-h100-80gb-hbm3.md"
    read = json.loads(data.read_text())
    assert read["parts"][2]["rows"][0]["share"] == 0.8501
    assert text.read_text() == markdown(RECORD)


def test_rows_outlive_a_process_that_was_killed_while_writing(tmp_path):
    path = tmp_path / "rows"
    row = measured("decode", "c", "ours", 1.0)
    append_row(path, row)
    append_row(path, row)
    with path.open("a") as file:
        file.write('{"part": "dec')
    assert read_rows(path) == [row, row]
    assert read_rows(tmp_path / "none") == []


def test_what_was_planned_and_not_measured_says_so():
    row = measured("decode", "c", "ours", 1.0)
    (kept, missing) = filled("decode", [("c", "ours"), ("c", "other")], [row], "time")
    assert kept is row
    assert (missing.side, missing.state, missing.reason) == ("other", NOT_MEASURED, "time")


def test_a_row_has_figures_or_a_state_that_explains_why_not():
    with pytest.raises(ValueError, match="has the figures \\(None"):
        Row(part="p", case="c", side="s", state=MEASURED)
    with pytest.raises(ValueError, match="failed has the figures \\(1"):
        Row(part="p", case="c", side="s", state=FAILED, median_ms=1.0)
    with pytest.raises(ValueError, match="state is 'done'"):
        Row(part="p", case="c", side="s", state="done")
