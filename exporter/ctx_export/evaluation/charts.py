"""Pictures: perplexity against length, and heat maps of needles found."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ctx_export.core.sizes import format_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ctx_export.evaluation.needle_run import NeedleReport
    from ctx_export.evaluation.perplexity import PerplexityReport

# Okabe and Ito's colours, which people of any colour vision tell apart, then line styles.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
HEAT = "cividis"  # of equal steps in lightness, readable in any colour vision and in grey


def perplexity_chart(report: PerplexityReport) -> Figure:
    """Perplexity against length, both axes logarithmic, with bands of one standard error where few
    enough curves leave room for them."""
    figure, axes = _figure(8.0, 4.8)
    bands = len(report.subjects) <= len(COLOURS)
    for index, name in enumerate(report.subjects):
        points = report.of(name)
        lengths = [point.length for point in points]
        values = [point.perplexity for point in points]
        colour = COLOURS[index % len(COLOURS)]
        style = _STYLES[index // len(COLOURS) % len(_STYLES)]
        axes.plot(lengths, values, style, color=colour, marker="o", markersize=4, label=name)
        if not bands:
            continue
        low = [point.perplexity - point.error for point in points]
        high = [point.perplexity + point.error for point in points]
        axes.fill_between(lengths, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    shown = sorted({point.length for point in report.points})
    axes.set_xticks(shown, [format_size(length) for length in shown])
    axes.set_xlabel("tokens of a window")
    axes.set_ylabel(f"perplexity of the last {report.setting.scored} tokens")
    _plain_ticks(axes)
    axes.grid(True, which="both", linewidth=0.4, alpha=0.5)
    axes.legend(
        fontsize=8, frameon=False, handlelength=3.5, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    return figure


def _plain_ticks(axes: Any) -> None:
    """Numbers such as 5 and 20 in place of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def needle_chart(report: NeedleReport) -> Figure:
    """A heat map per subject: share found by depth and length."""
    import numpy as np

    subjects = report.subjects
    lengths = sorted({cell.length for cell in report.cells})
    depths = sorted({cell.depth for cell in report.cells})
    columns = 1 if len(subjects) <= 2 else 2 if len(subjects) <= 6 else 3
    rows = -(-len(subjects) // columns)
    width, height = 1.4 + 0.62 * len(lengths), 0.9 + 0.34 * len(depths)
    figure, grid = _figure(columns * width + 1.2, rows * height + 0.4, rows, columns)
    panels = np.atleast_1d(grid).ravel()
    for axes in panels[len(subjects) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, subjects, strict=False):
        found = {(cell.depth, cell.length): cell.found for cell in report.of(name)}
        shares = np.array([[found[(depth, length)] for length in lengths] for depth in depths])
        image = axes.imshow(shares, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
        _write_shares(axes, shares)
        axes.set_xticks(range(len(lengths)), [format_size(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{100 * depth:.0f} %" for depth in depths])
        axes.tick_params(labelsize=8)
        axes.set_title(name, fontsize=9, loc="left")
    figure.supxlabel("tokens", fontsize=9)
    figure.supylabel("depth", fontsize=9)
    figure.colorbar(image, ax=list(panels), label="share found", shrink=0.6)
    return figure


def _write_shares(axes: Any, shares: Any) -> None:
    """Percentages into the cells, in an ink that can be read there."""
    for row, shown in enumerate(shares):
        for column, share in enumerate(shown):
            ink = "black" if share > 0.5 else "white"
            text = f"{100 * share:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7)


def svg(figure: Figure) -> str:
    """A figure as an SVG element, the same text for the same figure."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "ctx-export", "svg.fonttype": "none"}):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)
