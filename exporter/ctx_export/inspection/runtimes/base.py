"""A runtime as data: what it was read as, and where it departs from what a config.json says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ctx_export.inspection.scaling_settings import ScalingSettings

Condition = Callable[[ScalingSettings], bool]


class Verdict(str, Enum):
    """What becomes of a setting: `dropped` and `misread` change the model without a word,
    `refused` stops with an error."""

    HONOURED = "honoured"
    DROPPED = "dropped"
    MISREAD = "misread"
    REFUSED = "refused"

    @property
    def silent(self) -> bool:
        """Whether the model runs on, other than its settings say."""
        return self in (Verdict.DROPPED, Verdict.MISREAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One departure. `source` names the file of the runtime where it can be read."""

    setting: str
    verdict: Verdict
    when: Condition
    reason: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one runtime makes of one setting."""

    runtime: str
    version: str
    verdict: Verdict
    setting: str
    reason: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A runtime as of `version` (a release or a commit). `honours` are the rope types that it
    computes; a rule tells where it still departs from one of them."""

    name: str  # the module's name with hyphens
    version: str
    honours: tuple[str, ...]
    source: str  # where the honoured types are computed
    rules: tuple[Rule, ...]

    def judge(self, settings: ScalingSettings) -> tuple[Finding, ...]:
        """Every departure from `settings`; where it refuses, that alone; without any, honoured."""
        found = tuple(self._finding(rule) for rule in self.rules if rule.when(settings))
        refused = tuple(finding for finding in found if finding.verdict is Verdict.REFUSED)
        return refused or found or (self._honoured(settings),)

    def _finding(self, rule: Rule) -> Finding:
        return Finding(
            runtime=self.name,
            version=self.version,
            verdict=rule.verdict,
            setting=rule.setting,
            reason=rule.reason,
            source=rule.source,
        )

    def _honoured(self, settings: ScalingSettings) -> Finding:
        return Finding(
            runtime=self.name,
            version=self.version,
            verdict=Verdict.HONOURED,
            setting=f"rope_type {settings.kind}",
            reason="computed as config.json says",
            source=self.source,
        )
