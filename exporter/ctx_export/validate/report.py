"""The report of a validation: rows and a verdict, saved as report.json and report.md."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctx_export.validate.file_check import FileSection
from ctx_export.validate.rows import (
    Row,
    error_text,
    json_number,
    largest_error,
    markdown_table,
    terminal_table,
)

REPORT_JSON = "report.json"
REPORT_MD = "report.md"
# What inv_freq and the multiplier may differ from transformers' own, relative.
FREQUENCY_TOLERANCE = 2e-6
MULTIPLIER_TOLERANCE = 1e-6
# Mean share of the logit scale by which a quantised cache may change the logits. On random tokens
# the demo's change by 0.001 (int8) to 0.003 (float8) and by 0.05 where int8 has a fortieth of its
# levels; small random models with float8 reach 0.02.
QUANTISATION_LIMIT = 0.03

_NOT_JUDGED = (
    "the file's weights are quantised and PyTorch has the checkpoint's own: the rows show what "
    "that costs and decide nothing unless --tolerance is given; the file check proves the "
    "rewriting"
)
_QUANTISED_LIMITS = """\
Over a quantised cache a key or value near the middle between two of its numbers may be rounded one
way in the package and the other in PyTorch, and each such rounding changes the logits by a part of
what quantising changes. `limit` allows for a share of that change, `mean limit` holds the rows
together to what few such roundings explain.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationSection:
    """What a quantised cache costs: the package against PyTorch over caches that keep every
    number as it is, over the tokens of prefill, chunks and decode, in shares of the logit scale.
    """

    dtype: str
    max_error: float
    mean_error: float
    limit: float = QUANTISATION_LIMIT  # of the mean error

    @property
    def passed(self) -> bool:
        return self.mean_error <= self.limit

    def to_json(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "max_error": json_number(self.max_error),
            "mean_error": json_number(self.mean_error),
            "mean_limit": self.limit,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSection:
    """A TensorRT engine's part of the report.

    `plugin_layers` of the engine and `sites` of the graph (its `ctx` nodes) must be equal. `rows`
    are empty where the engine cannot run; `state` then says why.
    """

    runtime: str
    plugin_layers: int
    sites: int
    state: str
    rule: str = ""
    rows: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return (
            self.plugin_layers == self.sites
            and not self.problems
            and all(row.passed for row in self.rows)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "plugin_layers": self.plugin_layers,
            "sites": self.sites,
            "state": self.state,
            "rule": self.rule,
            "passed": self.passed,
            "problems": list(self.problems),
            "rows": [row.to_json() for row in self.rows],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """Everything a validation found. `facts` are words for people: method, precision, runtime."""

    facts: Mapping[str, str]
    rule: str
    max_context: int | None  # None: there is no last position
    rows: tuple[Row, ...]
    frequency_error: float  # of inv_freq against transformers' own, relative
    multiplier_error: float
    problems: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # what was not compared, and why
    quantisation: QuantisationSection | None = None
    engine: EngineSection | None = None
    file: FileSection | None = None  # of a package that was made from an ONNX file
    judged: bool = True  # False: PyTorch has other weights, and its rows decide nothing
    cache_bytes: int | None = None  # of one sequence's caches at full capacity
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every row, the tables and the engine are within their limits."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """What is beyond its limit, in words; nothing compared is a failure too."""
        found = [] if self.rows else ["nothing was compared"]
        wrong = [row for row in self.rows if not row.passed]
        if wrong:
            first = min(wrong, key=lambda row: (row.is_range, row.position))
            found.append(f"{len(wrong)} of {len(self.rows)} rows, the first at {first.where}")
        if self.problems:
            found.append(f"{len(self.problems)} problem{'s' * (len(self.problems) != 1)}")
        # "not <=": an error that is no number fails.
        if not self.frequency_error <= FREQUENCY_TOLERANCE:
            found.append("inv_freq")
        if not self.multiplier_error <= MULTIPLIER_TOLERANCE:
            found.append("the multiplier")
        if self.quantisation is not None and not self.quantisation.passed:
            found.append(f"the loss by a cache of {self.quantisation.dtype}")
        if self.engine is not None and not self.engine.passed:
            found.append("the engine")
        if self.file is not None and not self.file.passed:
            found.append(f"the file check against {self.file.file}")
        return found

    @property
    def disagrees_with(self) -> str:
        """What the package does not agree with, in words; empty where it agrees."""
        if self.passed:
            return ""
        only_file = self.file is not None and len(self.failures) == 1 and not self.file.passed
        return self.file.file if only_file and self.file is not None else "PyTorch"

    @property
    def reach(self) -> int:
        """The last position that was compared, -1 where none was."""
        return max((row.last for row in self.rows), default=-1)

    @property
    def summary(self) -> dict[str, Any]:
        """The manifest's `validation` entry; figures only, rows are in report.json."""
        result: dict[str, Any] = {
            "passed": self.passed,
            "max_error": json_number(max((r.max_error for r in self.rows), default=math.inf)),
            "rule": self.rule,
            "last_position": self.reach,
            "transformers_error": largest_error(row.transformers for row in self.rows),
            "inv_freq_error": json_number(self.frequency_error),
            "runtime": self.facts.get("runtime", ""),
            "seconds": round(self.seconds, 1),
        }
        if self.skipped:
            result["not_compared"] = list(self.skipped)
        if self.quantisation is not None:
            result["quantisation"] = self.quantisation.to_json()
        if self.file is not None:
            result["file_check"] = self.file.to_json()
        if not self.judged:
            result["judged"] = False
        if self.engine is not None:
            result["engine"] = {
                k: v for k, v in self.engine.to_json().items() if k not in ("rows", "problems")
            }
        return result

    def to_json(self) -> dict[str, Any]:
        """report.json's contents."""
        return {
            "passed": self.passed,
            "failures": self.failures,
            "last_position": self.reach,
            "facts": dict(self.facts),
            "rule": self.rule,
            "errors_are": "shares of the logit scale, max |reference logits| of the rows "
            "compared together",
            "inv_freq_error": json_number(self.frequency_error),
            "inv_freq_limit": FREQUENCY_TOLERANCE,
            "multiplier_error": json_number(self.multiplier_error),
            "multiplier_limit": MULTIPLIER_TOLERANCE,
            "rows": [row.to_json() for row in self.rows],
            "problems": list(self.problems),
            "not_compared": list(self.skipped),
            "quantisation": None if self.quantisation is None else self.quantisation.to_json(),
            "engine": None if self.engine is None else self.engine.to_json(),
            "file_check": None if self.file is None else self.file.to_json(),
            "judged": self.judged,
            "cache_bytes_per_sequence": self.cache_bytes,
            "seconds": round(self.seconds, 1),
            "versions": dict(self.versions),
        }

    def save(self, directory: Path) -> None:
        """Write report.json and report.md into `directory`."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        (directory / REPORT_JSON).write_text(text + "\n", encoding="utf-8")
        (directory / REPORT_MD).write_text(self.markdown(), encoding="utf-8")

    def lines(self) -> list[str]:
        """For a terminal: a row per position, then the verdict."""
        return [*terminal_table(self.rows), *self._remarks(), self.verdict()]

    def verdict(self) -> str:
        """One line: passed or not, the largest error and the rule."""
        worst = max((row.max_error for row in self.rows), default=math.inf)
        reference = "PyTorch"
        if self.quantisation is not None:
            reference += f" over a cache of {self.quantisation.dtype}"
        if not self.judged and self.passed:
            state = f"compared with {reference} up to position {self.reach}"
        elif not self.passed:
            state = f"DOES NOT AGREE with {reference} ({'; '.join(self.failures)})"
        else:
            state = f"agrees with {reference} up to position {self.reach}"
        if self.max_context is not None and self.rows and self.reach < self.max_context - 1:
            state += f", NOT COMPARED beyond {self.reach} up to {self.max_context - 1}"
        return (
            f"{state}: largest error {error_text(worst)} of the logit scale ({self.rule}; "
            f"{self.seconds:.0f} s)"
        )

    def markdown(self) -> str:
        """report.md: the verdict, the facts, every row."""
        parts = [f"# Validation\n\n{self.verdict()}\n"]
        parts.append("".join(f"- {name}: {value}\n" for name, value in self.facts.items()))
        parts.append("".join(f"- {remark}\n" for remark in self._remarks()))
        parts.append(
            "Errors are shares of the logit scale, the largest magnitude among the reference "
            "logits of the rows\ncompared together. `transformers` is the error of the unmodified "
            "model (float32 angles over its own\ntable), `own table` that of float64 angles over "
            "transformers' own float32 table; n/a where it\ncomputes nothing of the kind.\n"
        )
        if self.quantisation is not None:
            parts.append(_QUANTISED_LIMITS)
        parts.append(markdown_table(self.rows))
        if self.engine is not None and self.engine.rows:
            parts.append(f"## Engine ({self.engine.runtime})\n\n{self.engine.rule}\n")
            parts.append(markdown_table(self.engine.rows))
        return "\n".join(parts)

    def _remarks(self) -> list[str]:
        found = [
            f"inv_freq differs from transformers' own by {error_text(self.frequency_error)} "
            f"relative (limit {FREQUENCY_TOLERANCE:g}), the multiplier by "
            f"{error_text(self.multiplier_error)} (limit {MULTIPLIER_TOLERANCE:g})"
        ]
        if self.quantisation is not None:
            found.append(_quantisation_remark(self.quantisation))
        found += [f"PROBLEM: {problem}" for problem in self.problems]
        found += [f"not compared: {what}" for what in self.skipped]
        if not self.judged:
            found.append(_NOT_JUDGED)
        if self.file is not None:
            found.append(self.file.remark())
        if self.engine is not None:
            found += _engine_remarks(self.engine)
        return found


def _quantisation_remark(loss: QuantisationSection) -> str:
    remedy = (
        "; give --calibration a text like those that the model will read, or keep full precision "
        "with --kv-cache-dtype auto"
    )
    return (
        f"the {loss.dtype} cache changes the logits by {error_text(loss.mean_error)} in the mean "
        f"(limit {loss.limit:g}), {error_text(loss.max_error)} at most, against PyTorch over a "
        f"cache of full precision{'' if loss.passed else remedy}"
    )


def _engine_remarks(engine: EngineSection) -> list[str]:
    equal = "=" if engine.plugin_layers == engine.sites else "BUT"
    return [
        f"engine {engine.runtime}: {engine.plugin_layers} plugin layers {equal} {engine.sites} "
        f"sites; {engine.state}",
        *(f"PROBLEM of the engine: {problem}" for problem in engine.problems),
    ]
