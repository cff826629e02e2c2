"""The report of an export that had an ONNX file and no checkpoint to compare with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctx_export.validate.file_check import FileSection
from ctx_export.validate.report import REPORT_JSON, REPORT_MD

NOT_COMPARED = (
    "not compared with PyTorch: no --reference was given, so the scaling beyond the trained "
    "context is unchecked"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """The file check alone; the same methods as `ValidationReport`."""

    file: FileSection

    @property
    def passed(self) -> bool:
        return self.file.passed

    @property
    def disagrees_with(self) -> str:
        return "" if self.passed else self.file.file

    @property
    def summary(self) -> dict[str, Any]:
        """The manifest's `validation` entry."""
        return {
            "passed": self.passed,
            "file_check": self.file.to_json(),
            "not_compared": [NOT_COMPARED],
        }

    def save(self, directory: Path) -> None:
        """Write report.json and report.md into `directory`."""
        text = json.dumps(self.summary, indent=1, allow_nan=False)
        (directory / REPORT_JSON).write_text(text + "\n", encoding="utf-8")
        lines = "".join(f"- {line}\n" for line in self.lines())
        (directory / REPORT_MD).write_text(f"# Validation\n\n{lines}", encoding="utf-8")

    def lines(self) -> list[str]:
        return [self.file.remark(), NOT_COMPARED]
