"""Small reports with figures set by hand."""

from __future__ import annotations

from ctx_export.evaluation.needle import Answer, CellResult, NeedleSetting
from ctx_export.evaluation.needle_run import NeedleReport
from ctx_export.evaluation.perplexity import (
    Bucket,
    PerplexityReport,
    PerplexitySetting,
    Point,
)

TEXT = {"name": "<text> & more.txt", "sha256": "0" * 64, "tokens": 4321}


def needle_report() -> NeedleReport:
    """Two subjects, two lengths, two depths; half of the answers of "b" at 2k are found."""

    def cell(subject: str, length: int, depth: float) -> CellResult:
        second = not (subject == "b" and length == 2048)
        answers = (
            Answer(found=True, log_probability=-0.5),
            Answer(found=second, log_probability=-1.5),
        )
        return CellResult(subject=subject, length=length, depth=depth, answers=answers)

    setting = NeedleSetting(lengths=(1024, 2048), depths=(0.0, 1.0), keys=2)
    cells = [
        cell(subject, place.length, place.depth)
        for subject in ("<a>", "b")
        for place in setting.cells
    ]
    return NeedleReport(setting=setting, text=TEXT, cells=tuple(cells))


def perplexity_report() -> PerplexityReport:
    def point(subject: str, length: int, value: float) -> Point:
        buckets = (Bucket(first=1, end=length, perplexity=value + 1, error=0.5),)
        return Point(
            subject=subject,
            length=length,
            windows=3,
            perplexity=value,
            error=0.25,
            buckets=buckets,
        )

    return PerplexityReport(
        setting=PerplexitySetting(lengths=(32, 64)),
        text=TEXT,
        points=(point("<a>", 32, 4.0), point("<a>", 64, 5.0), point("b", 32, 40.0)),
    )
