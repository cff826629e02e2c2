"""What the tests measured of each family, for the README's table.

    python -m pytest --record-support docs/support.json tests/e2e/test_decoders.py …

keeps the measurements of the tests that ran in a file; what other tests put there stays.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.measuring import METHODS

CHECKPOINT = "checkpoint"


@dataclass
class Support:
    """Errors by family, source (`checkpoint`, or who wrote an ONNX file) and method."""

    apart: dict[str, str]  # what sets each family apart
    errors: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def record(self, family: str, source: str, method: str, error: float) -> None:
        if family not in self.apart:
            raise KeyError(f"{family} has no text in tests/support/decoders.py: say what it is")
        self.errors.setdefault(family, {}).setdefault(source, {})[method] = error

    def write(self, path: Path) -> None:
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        errors = held.get("errors", {})
        for family, sources in self.errors.items():
            for source, methods in sources.items():
                errors.setdefault(family, {}).setdefault(source, {}).update(methods)
        kept = {
            "apart": self.apart,
            "errors": {
                family: {
                    source: {
                        method: float(f"{errors[family][source][method]:.1e}")
                        for method in METHODS
                        if method in errors[family][source]
                    }
                    for source in sorted(errors[family])
                }
                for family in self.apart
                if family in errors
            },
        }
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
