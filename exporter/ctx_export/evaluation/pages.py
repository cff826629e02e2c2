"""Pages of reports: one HTML file each, with its style and figures inside and no script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ctx_export.core.sizes import format_size
from ctx_export.evaluation.charts import HEAT, perplexity_chart, svg
from ctx_export.evaluation.report_files import render

if TYPE_CHECKING:
    from ctx_export.evaluation.needle import CellResult
    from ctx_export.evaluation.needle_run import NeedleReport
    from ctx_export.evaluation.perplexity import Bucket, PerplexityReport, Point


def perplexity_page(report: PerplexityReport) -> str:
    """The curve, the table of lengths, and every subject by position."""
    lengths = sorted({point.length for point in report.points})
    longest = [report.of(name)[-1] for name in report.subjects]
    by_position = {
        point.subject: {(b.first, b.end): _shown(b) for b in point.buckets}
        for point in longest
        if point.length == max(lengths)
    }
    edges = sorted({edge for cells in by_position.values() for edge in cells})
    return render(
        "perplexity.html.j2",
        title="Perplexity against length",
        facts=_facts(report),
        chart=svg(perplexity_chart(report)),
        scored=report.setting.scored,
        lengths=[(length, format_size(length)) for length in lengths],
        rows=[(name, {p.length: _shown(p) for p in report.of(name)}) for name in report.subjects],
        longest=format_size(max(lengths)),
        edges=edges,
        by_position=by_position,
    )


def _shown(measured: Bucket | Point) -> str:
    return f"{measured.perplexity:.3f} ± {measured.error:.3f}"


def needle_page(report: NeedleReport) -> str:
    """A heat map per subject; every cell tells its answers."""
    lengths = sorted({cell.length for cell in report.cells})
    depths = sorted({cell.depth for cell in report.cells})
    maps = []
    for name in report.subjects:
        cells = {(cell.depth, cell.length): cell for cell in report.of(name)}
        rows = [
            (f"{100 * depth:.0f} %", [_cell(cells[(depth, length)]) for length in lengths])
            for depth in depths
        ]
        found = sum(cell.found for cell in cells.values()) / len(cells)
        maps.append({"name": name, "found": f"{100 * found:.0f} %", "rows": rows})
    setting = report.setting
    return render(
        "needle.html.j2",
        title="Needle in a haystack",
        facts={
            "form": setting.form,
            "needles": setting.needles,
            "questions per cell": setting.keys,
            "seed": setting.seed,
            **_facts(report),
        },
        lengths=[format_size(length) for length in lengths],
        maps=maps,
        scale=[(f"{share:.0%}", _colour(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
    )


def _cell(cell: CellResult) -> dict[str, Any]:
    answered = sum(answer.found for answer in cell.answers)
    return {
        "text": f"{100 * cell.found:.0f}",
        "colour": _colour(cell.found),
        "ink": "#000" if cell.found > 0.5 else "#fff",
        "title": (
            f"{cell.length} tokens, depth {100 * cell.depth:g} %: {answered} of "
            f"{len(cell.answers)} found, mean log-probability {cell.log_probability:.2f}"
        ),
    }


def _colour(share: float) -> str:
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    return to_hex(mpl.colormaps[HEAT](share))


def _facts(report: NeedleReport | PerplexityReport) -> dict[str, Any]:
    return {
        "text": f"{report.text['name']}, {report.text['tokens']} tokens",
        **report.versions,
    }
