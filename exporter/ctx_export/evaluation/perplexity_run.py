"""A perplexity run: packages, and transformers where asked, on a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctx_export.core.progress import Progress
from ctx_export.evaluation.perplexity import PerplexityReport, PerplexitySetting, measure
from ctx_export.evaluation.report_files import versions
from ctx_export.evaluation.subject import Opening, open_subjects
from ctx_export.evaluation.text import common_codec, describe, read_text


def run(
    packages: Sequence[Path],
    file: Path,
    setting: PerplexitySetting,
    opening: Opening | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> PerplexityReport:
    """Measure `packages` on the text of `file`; with a `checkpoint` also transformers' model of it
    with each package's method.

    Raises UserError for a text or lengths that cannot be measured, and for packages that read
    text differently.
    """
    text = read_text(file)
    codec = common_codec(packages, text)
    ids = codec.ids(text)
    with open_subjects(packages, opening or Opening(), checkpoint) as subjects:
        points = measure(subjects, codec, ids, setting, progress)
    return PerplexityReport(
        setting=setting,
        text=describe(file, text, ids),
        points=points,
        versions=versions(*(("torch", "transformers") if checkpoint else ())),
    )
