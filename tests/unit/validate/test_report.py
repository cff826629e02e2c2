"""Oracles: reports written by hand, and strict JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from ctx_export.validate.report import (
    FREQUENCY_TOLERANCE,
    MULTIPLIER_TOLERANCE,
    EngineSection,
    QuantisationSection,
    ValidationReport,
)
from ctx_export.validate.rows import Row
from tests.unit.validate.rows_by_hand import SEVERAL, row

NAN, INF = math.nan, math.inf


def report(*rows: Row, **changes) -> ValidationReport:
    values = {
        "facts": {"method": "yarn", "runtime": "onnxruntime, CPU"},
        "rule": "error at most 0.001 of the logit scale",
        "max_context": 1024,
        "frequency_error": 1e-7,
        "multiplier_error": 0.0,
        "seconds": 3.21,
        "versions": {"torch": "2"},
    }
    return ValidationReport(rows=rows, **{**values, **changes})


GOOD = report(row(0), row(0, 511), row(1023, how="probe"))


def engine(**changes) -> EngineSection:
    values = {
        "runtime": "tensorrt-rtx",
        "plugin_layers": 6,
        "sites": 6,
        "state": "measured",
        "rule": "error at most 0.001 of the logit scale",
        "rows": (row(0),),
    }
    return EngineSection(**{**values, **changes})


def loss(mean: float) -> QuantisationSection:
    return QuantisationSection(dtype="int8", max_error=0.4, mean_error=mean)


def test_what_a_quantised_cache_costs_is_told():
    told = replace(GOOD, quantisation=loss(0.003))
    assert told.passed
    line = (
        "the int8 cache changes the logits by 3.0e-03 in the mean (limit 0.03), 4.0e-01 at most, "
        "against PyTorch over a cache of full precision"
    )
    assert line in told.lines() and f"- {line}\n" in told.markdown()
    lossy = replace(GOOD, quantisation=loss(0.031)).lines()[-2]
    assert lossy.endswith("or keep full precision with --kv-cache-dtype auto")
    assert told.verdict().startswith("agrees with PyTorch over a cache of int8 up to position")
    assert "rounded one\nway in the package" in told.markdown()
    assert "rounded one\nway in the package" not in GOOD.markdown()
    figures = {
        "dtype": "int8",
        "max_error": 0.4,
        "mean_error": 0.003,
        "mean_limit": 0.03,
        "passed": True,
    }
    assert told.to_json()["quantisation"] == told.summary["quantisation"] == figures
    assert GOOD.to_json()["quantisation"] is None and "quantisation" not in GOOD.summary
    assert replace(GOOD, quantisation=loss(INF)).to_json()["quantisation"]["mean_error"] is None


def test_a_report_within_its_limits_passes():
    assert (GOOD.passed, GOOD.failures) == (True, [])
    assert GOOD.verdict() == (
        "agrees with PyTorch up to position 1023: largest error 1.0e-06 of the logit scale "
        "(error at most 0.001 of the logit scale; 3 s)"
    )


FAILURES = {
    "a row": (report(row(0), row(9, max_error=2e-3)), "1 of 2 rows, the first at 9"),
    "single positions are named before ranges": (
        report(row(0, 9, max_error=1), row(3), row(9, max_error=1)),
        "2 of 3 rows, the first at 9",
    ),
    "a range": (report(row(0), row(0, 9, max_error=1)), "1 of 2 rows, the first at 0…9"),
    "infinite": (report(row(5, max_error=INF)), "1 of 1 rows, the first at 5"),
    "no number": (report(row(5, max_error=NAN)), "1 of 1 rows, the first at 5"),
    "infinite limit": (
        report(row(5, max_error=INF, limit=INF)),
        "1 of 1 rows, the first at 5",
    ),
    "a mean": (
        report(row(0), row(0, 9, mean_error=2e-7, mean_limit=1e-7)),
        "1 of 2 rows, the first at 0…9",
    ),
    "a mean that is no number": (
        report(row(0), row(0, 9, mean_error=NAN, mean_limit=1.0)),
        "1 of 2 rows, the first at 0…9",
    ),
    "loss": (replace(GOOD, quantisation=loss(0.031)), "the loss by a cache of int8"),
    "loss that is none": (replace(GOOD, quantisation=loss(NAN)), "the loss by a cache of int8"),
    "a problem": (replace(GOOD, problems=("NaN in 1 row",)), "1 problem"),
    "problems": (replace(GOOD, problems=("NaN", "Inf")), "2 problems"),
    "frequencies": (replace(GOOD, frequency_error=1.1 * FREQUENCY_TOLERANCE), "inv_freq"),
    "frequencies that are none": (replace(GOOD, frequency_error=NAN), "inv_freq"),
    "multiplier": (replace(GOOD, multiplier_error=1.1 * MULTIPLIER_TOLERANCE), "the multiplier"),
    "multiplier that is none": (replace(GOOD, multiplier_error=NAN), "the multiplier"),
    "nothing": (report(), "nothing was compared"),
    "layers missing": (replace(GOOD, engine=engine(plugin_layers=5)), "the engine"),
    "layers too many": (replace(GOOD, engine=engine(plugin_layers=7)), "the engine"),
    "an engine's row": (replace(GOOD, engine=engine(rows=(row(0, max_error=1),))), "the engine"),
    "an engine's problem": (replace(GOOD, engine=engine(problems=("NaN",))), "the engine"),
}


@pytest.mark.parametrize(("failing", "reason"), FAILURES.values(), ids=FAILURES)
def test_every_ingredient_can_fail_a_report(failing, reason):
    assert failing.failures == [reason]
    assert not failing.passed
    assert failing.summary["passed"] is failing.to_json()["passed"] is False
    assert failing.to_json()["failures"] == [reason]
    over = " over a cache of int8" if failing.quantisation else ""
    assert failing.verdict().startswith(f"DOES NOT AGREE with PyTorch{over} ({reason})")
    assert failing.lines()[-1] == failing.verdict()
    assert failing.markdown().startswith(f"# Validation\n\n{failing.verdict()}\n")


def test_an_error_at_its_limit_passes():
    edge = report(
        row(0, max_error=1e-3),
        frequency_error=FREQUENCY_TOLERANCE,
        multiplier_error=MULTIPLIER_TOLERANCE,
    )
    assert edge.passed


def test_an_engine_that_could_not_run_fails_nothing_and_is_told():
    unmeasured = replace(GOOD, engine=engine(rows=(), state="not measured: no GPU (none here)"))
    assert unmeasured.passed
    told = "engine tensorrt-rtx: 6 plugin layers = 6 sites; not measured: no GPU (none here)"
    assert told in unmeasured.lines()
    assert f"- {told}\n" in unmeasured.markdown()
    assert unmeasured.summary["engine"]["state"] == "not measured: no GPU (none here)"


def test_an_engine_s_rows_are_in_the_markdown_and_its_faults_in_the_lines():
    measured = replace(
        GOOD, engine=engine(plugin_layers=5, rows=(row(77, peer=5e-4),), problems=("NaN at 77",))
    )
    assert "engine tensorrt-rtx: 5 plugin layers BUT 6 sites; measured" in measured.lines()
    assert "PROBLEM of the engine: NaN at 77" in measured.lines()
    after = measured.markdown().split("## Engine (tensorrt-rtx)")[1]
    assert "| 77 | prefill | 1.0e-06 | 1.0e-07 | 1.0e-03 | 2.0e-05 | 3.0e-06 | 5.0e-04 | ok |" in (
        after
    )


def test_what_was_not_compared_is_said_and_never_claimed():
    short = report(row(0), row(0, 511), skipped=("positions 1008 to 1023 need 9.0 GiB",))
    assert short.passed
    assert "not compared: positions 1008 to 1023 need 9.0 GiB" in short.lines()
    assert "- not compared: positions 1008 to 1023 need 9.0 GiB\n" in short.markdown()
    assert short.verdict().startswith(
        "agrees with PyTorch up to position 511, NOT COMPARED beyond 511 up to 1023: largest"
    )
    assert short.summary["last_position"] == short.to_json()["last_position"] == 511
    assert short.summary["not_compared"] == ["positions 1008 to 1023 need 9.0 GiB"]
    assert "not_compared" not in GOOD.summary


def test_a_report_of_nothing_claims_no_position():
    empty = report()
    assert (empty.reach, empty.summary["last_position"]) == (-1, -1)
    assert "up to position" not in empty.verdict()
    assert "largest error not finite" in empty.verdict()


def test_json_has_no_number_that_json_does_not_know():
    broken = report(
        row(
            0, max_error=INF, mean_error=NAN, limit=INF, transformers=INF, own_table=NAN, peer=NAN
        ),
        frequency_error=INF,
        multiplier_error=NAN,
        engine=engine(rows=(row(0, max_error=NAN),)),
    )
    for value in (broken.to_json(), broken.summary):
        text = json.dumps(value, allow_nan=False)
        assert json.loads(text) == value
    (values,) = broken.to_json()["rows"]
    assert values["max_error"] is values["mean_error"] is values["peer"] is None
    assert values["passed"] is False


def test_saved_files_hold_the_report(tmp_path):
    GOOD.save(tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == GOOD.to_json()
    assert saved["rows"][2] == {
        "position": 1023,
        "last": 1023,
        "compared": 1,
        "how": "probe",
        "max_error": 1e-6,
        "mean_error": 1e-7,
        "limit": 1e-3,
        "transformers": 2e-5,
        "own_table": 3e-6,
        "peer": None,
        "mean_limit": None,
        "passed": True,
    }
    assert (tmp_path / "report.md").read_text() == GOOD.markdown()


def test_the_summary_has_the_largest_errors_of_all_rows():
    summary = report(
        row(0, transformers=7e-4), row(5, max_error=4e-5), row(9, transformers=1e-9)
    ).summary
    assert (summary["max_error"], summary["transformers_error"]) == (4e-5, 7e-4)
    assert (summary["last_position"], summary["inv_freq_error"]) == (9, 1e-7)
    assert (summary["runtime"], summary["seconds"]) == ("onnxruntime, CPU", 3.2)


def test_the_terminal_has_a_line_per_position_then_ranges():
    table = report(*SEVERAL).lines()[:7]
    assert table == [
        " position  compared in        max error  mean error    limit  transformers  result",
        "        0  prefill, decode      1.0e-06     1.0e-07  1.0e-03       2.0e-05      ok",
        "      255  prefill, decode      2.0e-03     1.0e-07  1.0e-03       2.0e-05  FAILED",
        "     1023  probe             not finite  not finite  1.0e-03       2.0e-05  FAILED",
        "    0…511  prefill              6.0e-06     1.0e-07  1.0e-03       2.0e-05      ok",
        "    0…511  decode of 9 rows     1.0e-06     1.0e-07  1.0e-03       2.0e-05      ok",
        "1008…1023  probe                1.0e-06     1.0e-07  1.0e-03       2.0e-05      ok",
    ]


def test_a_limit_of_the_mean_has_its_column():
    quantised = report(
        row(7, limit=2e-3),
        row(0, 9, mean_error=4e-5, mean_limit=3e-5),
        row(0, 9, how="chunks", max_error=9e-4, mean_limit=2e-5),
    )
    assert quantised.lines()[:3] == [
        "position  compared in      max error  mean error    limit  mean limit  transformers  "
        "result",
        "       7  prefill            1.0e-06     1.0e-07  2.0e-03                   2.0e-05  "
        "    ok",
        "     0…9  prefill, chunks    9.0e-04     4.0e-05  1.0e-03     3.0e-05       2.0e-05  "
        "FAILED",
    ]
    lines = [line for line in quantised.markdown().splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 7 | prefill | 1.0e-06 | 1.0e-07 | 2.0e-03 |  | 2.0e-05 |")
    assert lines[3].startswith("| 0…9 | prefill | 1.0e-06 | 4.0e-05 | 1.0e-03 | 3.0e-05 | 2.0e-05")


def test_the_markdown_has_every_row():
    lines = report(*SEVERAL).markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(SEVERAL)
    assert len({line.count("|") for line in table}) == 1
    cells = "1.0e-07 | 1.0e-03 | 2.0e-05 | 3.0e-06 |  "
    assert table[3] == f"| 255 | prefill | 5.0e-06 | {cells}| ok |"
    assert table[7] == f"| 0…511 | decode of 9 rows | 1.0e-06 | {cells}| ok |"
    assert "- method: yarn" in lines


def test_what_transformers_does_not_compute_is_left_blank():
    bounded = report(
        row(0, transformers=None, own_table=None),
        row(0, how="decode", transformers=None, own_table=None),
        row(9, transformers=None),
        row(9, how="chunks", transformers=3e-5, max_error=1e-9),
        max_context=None,
        cache_bytes=4096,
    )
    assert bounded.lines()[1].split() == [
        *("0", "prefill,", "decode", "1.0e-06", "1.0e-07", "1.0e-03", "n/a", "ok")
    ]
    assert "3.0e-05" in bounded.lines()[2]  # known in one of the ways
    assert "| n/a | n/a |  | ok |" in bounded.markdown()
    values = bounded.to_json()
    assert values["rows"][0]["transformers"] is values["rows"][0]["own_table"] is None
    assert values["cache_bytes_per_sequence"] == 4096
    assert bounded.summary["transformers_error"] == 3e-5
    assert report(row(0, transformers=None)).summary["transformers_error"] is None


def test_a_package_without_a_last_position_claims_those_it_was_compared_at():
    far = report(row(0), row(1 << 31), max_context=None)
    assert far.verdict().startswith("agrees with PyTorch up to position 2147483648: largest error")
