"""`ctx-plan`'s report for people: a heading, a row for each method, and what fits."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from ctx_export.cli.inspect_rows import Row as Heading
from ctx_export.cli.inspect_rows import format_bytes
from ctx_export.core.manifest import BOUNDED
from ctx_export.core.sizes import format_size
from ctx_export.planning.fit import Fit
from ctx_export.planning.report import Figures, Report, Row

WIDTH = 110
_HEADER = ("method", "KV/token", "KV/sequence", "workspace", "total", "prefill", "decode")
_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def table_lines(report: Report) -> Iterator[str]:
    """The lines of a report."""
    for name, value in _heading(report):
        yield from _wrapped(f"{name:<14} ", value)
    yield ""
    one = len(report.budgets) == 1
    yield from _methods(report, with_fit=one)
    if not one:
        for number, budget in enumerate(report.budgets):
            yield ""
            usable = budget.usable(report.reserve)
            yield f"{budget.name}: {format_bytes(usable)} of {format_bytes(budget.memory_bytes)}"
            yield from _fits(report, number)
    yield ""
    for note in _legend(report):
        yield from _wrapped("", note)


def _heading(report: Report) -> Iterator[Heading]:
    spec = report.source.spec
    yield (
        "model",
        f"{report.source.name}: {spec.family}, {spec.layers} layers, {spec.heads} heads on "
        f"{spec.kv_heads}, head dimension {spec.head_dim}, vocabulary {spec.vocab}",
    )
    yield (
        "weights",
        f"{format_bytes(report.weights.bytes)} in {report.precision}, {report.weights.numbers} "
        f"parameters ({report.weights.origin.value})",
    )
    yield (
        "target",
        f"{format_size(report.target)} tokens, trained on {format_size(spec.original_context)}; "
        f"{report.max_batch} sequence{'s' * (report.max_batch != 1)}",
    )
    first = report.figures[0]
    yield (
        "activations",
        f"{format_bytes(first.memory.activations)} for each of {first.memory.contexts} execution "
        f"contexts (estimate), {first.plan.max_chunk} new tokens a call",
    )
    for name in _kinds(report):
        yield ("caches", name)
    if len(report.budgets) == 1:
        budget = report.budgets[0]
        usable = budget.usable(report.reserve)
        yield (
            "memory",
            f"{budget.name}: {format_bytes(usable)} of {format_bytes(budget.memory_bytes)}, "
            f"{report.reserve:.0%} kept free",
        )


def _kinds(report: Report) -> list[str]:
    """The kinds of caches that there are, and of which methods."""
    found: dict[str, list[str]] = {}
    for row in report.rows:
        if row.figures is not None:
            found.setdefault(_layers(row.figures), []).append(row.name)
    return [f"{', '.join(names)}: {layers}" for layers, names in found.items()]


def _layers(figures: Figures) -> str:
    kv = figures.kv
    return "; ".join(
        f"{kind.layers} layers {'of fixed size' if kind.cache.policy == BOUNDED else 'that grow'}"
        f" ({kind.cache.rule}), {kind.cache.capacity} slots, {kind.kv_heads} KV heads, "
        f"{kind.dtype}"
        for kind in kv.kinds
    )


def _methods(report: Report, *, with_fit: bool) -> Iterator[str]:
    header = list(_HEADER)
    timed = with_fit and report.budgets[0].bandwidth is not None
    if with_fit:
        header += ["context", "batch"] + ["ms ≥"] * timed
    rows: list[tuple[Row, list[str]]] = []
    for row in report.rows:
        cells = [row.name]
        if row.figures is not None:
            cells += _cells(row.figures)
        if row.figures is not None and with_fit:
            cells += _fit_cells(row.figures.fits[0], row.figures, timed=timed)
        rows.append((row, cells))
    widths = _widths([header, *(cells for _, cells in rows)])
    yield _line(header, widths)
    for row, cells in rows:
        if row.figures is None:
            yield from _wrapped(f"{row.name:<{widths[0]}}  ", f"refused: {row.refusal}")
        else:
            yield _line(cells, widths)


def _cells(figures: Figures) -> list[str]:
    memory = figures.memory
    return [
        format_bytes(int(figures.kv.token_bytes)),
        format_bytes(memory.sequence),
        format_bytes(memory.workspace),
        format_bytes(memory.exact),
        _operations(figures.prefill.operations.total),
        format_bytes(figures.decode.bytes),
    ]


def _fit_cells(fit: Fit, figures: Figures, *, timed: bool) -> list[str]:
    context = "any" if fit.context is None else str(fit.context or "none")
    cells = [context, str(fit.batch or "none")]
    least = fit.budget.milliseconds(figures.decode.bytes)
    return cells + [f"{least:.3g}" if least is not None and fit.fits else "-"] * timed


def _fits(report: Report, number: int) -> Iterator[str]:
    """What fits one of several budgets; methods of which the same fits share a row."""
    timed = report.budgets[number].bandwidth is not None
    found: dict[tuple[str, ...], list[str]] = {}
    for row in report.rows:
        if row.figures is not None:
            cells = _fit_cells(row.figures.fits[number], row.figures, timed=timed)
            found.setdefault(tuple(cells), []).append(row.name)
    header = ["  context", "batch"] + ["ms ≥"] * timed
    table = [header, *([f"  {cells[0]}", *cells[1:]] for cells in found)]
    widths = _widths(table)
    yield _line(header, widths) + "  methods"
    for cells, names in zip(table[1:], found.values(), strict=True):
        yield from _wrapped(f"{_line(cells, widths)}  ", ", ".join(names))


def _legend(report: Report) -> Iterator[str]:
    yield (
        "KV/token: by which one more token makes the caches of a sequence larger; KV/sequence: "
        "at capacity; workspace: the most that a plugin layer asks for, once for each context."
    )
    yield (
        "total: weights, caches and workspace, without activations; prefill: operations to read "
        "the target; decode: bytes that one step at the target has to read, weights and caches."
    )
    if report.budgets:
        yield (
            "context: the longest that fits with all that and the activations' estimate; batch: "
            "the most sequences at the target."
        )
    if any(fit.context == 0 and f.plan.max_context for f in report.figures for fit in f.fits):
        yield (
            "none: not even the tokens that the model was trained on fit; --original-context with "
            "--target plans for fewer."
        )
    if any(budget.bandwidth is not None for budget in report.budgets):
        yield (
            "ms ≥: decode bytes over the memory's bandwidth, a lower bound of one step and no "
            "measurement."
        )
    for note in report.notes:
        yield f"note: {note}"


def _operations(count: int) -> str:
    for scale, unit in _SCALES:
        if count >= scale:
            return f"{count / scale:.3g} {unit}FLOP"
    return f"{count} FLOP"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    columns = max(len(row) for row in rows)
    return [max(len(row[i]) for row in rows if i < len(row)) for i in range(columns)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = cells
    aligned = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=False)]
    return "  ".join([f"{first:<{widths[0]}}", *aligned])


def _wrapped(head: str, text: str) -> list[str]:
    """`text` behind `head`, its further lines below its start."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
