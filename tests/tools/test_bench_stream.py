"""The benchmarks of bounded caches run: each once, at sizes that measure nothing."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tools.bench import recompute, sinks, stream
from tools.bench.packages import export_packages

CACHE = 16  # of the benchmark of sinks, and of recomputation


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """All packages that the benchmarks ask for, from one trace."""
    wanted = {
        **stream.wanted(4, 28, 100),
        **recompute.wanted([CACHE]),
        **sinks.wanted([0, 4], CACHE),
    }
    return export_packages("demo", tmp_path_factory.mktemp("packages"), wanted)


def run(benchmark, packages, monkeypatch, report, *arguments):
    """(standard output, JSON report) of a benchmark that must succeed."""
    monkeypatch.setattr(
        benchmark,
        "export_packages",
        lambda model, folder, wanted: {name: packages[name] for name in wanted},
    )
    finished = CliRunner().invoke(
        benchmark.main, [*arguments, "--json", str(report)], catch_exceptions=False
    )
    assert finished.exit_code == 0, finished.output
    return finished.output, json.loads(report.read_text())


def test_a_stream_keeps_its_perplexity_and_its_cache(packages, monkeypatch, tmp_path):
    arguments = ("--tokens", "3000", "--window", "28", "--chunk", "100")
    shown, report = run(stream, packages, monkeypatch, tmp_path / "report", *arguments)
    assert [tenth["until"] for tenth in report["tenths"]] == list(range(300, 3001, 300))
    assert report["largest_loss_difference"] < 1e-5
    assert {tenth["cache_bytes"] for tenth in report["tenths"]} == {131 * 5 * 2 * 2 * 64 * 4}
    assert shown.count("last tenth against first") == 7


def test_recomputation_is_timed_beside_streaming(packages, monkeypatch, tmp_path):
    arguments = ("--caches", str(CACHE), "--tokens", "2")
    shown, report = run(recompute, packages, monkeypatch, tmp_path / "report", *arguments)
    assert [(row["side"], row["tokens"]) for row in report["rows"]] == [
        ("streaming", 6),
        ("recomputation", 2),
    ]
    assert "times as long" in shown


def test_sinks_are_scored_beside_recomputation(packages, monkeypatch, tmp_path):
    arguments = ("--cache", str(CACHE), "--tokens", "32", "--stride", "4", "--sinks", "0,4")
    _, report = run(sinks, packages, monkeypatch, tmp_path / "report", *arguments)
    rows = {row["what"]: row for row in report["rows"]}
    assert list(rows) == ["0 sinks", "4 sinks", "recomputation"]
    assert all(1 < row["perplexity"] < 2048 for row in rows.values())
    assert rows["recomputation"]["difference"] == 0


@pytest.mark.parametrize(
    ("part", "available", "passage"),
    [(100, 300, (100, 1)), (300, 300, (300, 1)), (301, 300, (43, 7)), (1000, 300, (250, 4))],
)
def test_a_part_is_whole_passes_over_what_there_is(part, available, passage):
    assert stream.choose_passage(part, available) == passage


def test_tokens_that_make_no_whole_chunks_are_refused():
    refused = CliRunner().invoke(stream.main, ["--tokens", "3001", "--chunk", "100"])
    assert refused.exit_code == 2 and "give a multiple of 1000" in refused.output
