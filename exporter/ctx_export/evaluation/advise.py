"""Which method and which factor: measured on text and pass keys, short and long.

Every candidate becomes a package and is measured at the trained length L and at the target T:
static scaling costs quality on short texts, too small a factor breaks before T. Of each scaling
method factors are tried from the smallest on until one holds; of the methods that hold, the
smallest factor wins (less of it changes the model less), then the lower loss at T. A cache policy
is advised where no scaling method holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.sizes import format_size
from ctx_export.evaluation.scoring import mean_and_error

# Shares of T/L that are tried as factors: below 1 the last positions lie beyond s·L, which some
# methods bear for a while; above 1 the table is made for more than is asked.
_SHARES = (0.5, 2**-0.5, 1.0, 2**0.5, 2.0)
RECIPE_NAME = "recipe.yaml"
NEAREST_NAME = "nearest.yaml"
SCALING = ("yarn", "ntk", "linear", "dynamic-ntk")
POLICIES = ("landmark", "self-extend", "dual-chunk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What holding means. `perplexity`: how far above the model's own at L it may lie, in shares,
    at L and at T; `keys`: share of pass keys that must be found of those that the model itself
    finds at L."""

    perplexity: float = 0.1
    keys: float = 0.9

    def __post_init__(self) -> None:
        if self.perplexity < 0:
            raise UserError(f"worse is {self.perplexity:g}: give a share of at least 0")
        if not 0 <= self.keys <= 1:
            raise UserError(f"keys-found is {self.keys:g}: give a share from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviseSetting:
    """What is tried and measured."""

    target: int
    methods: tuple[str, ...] = SCALING + POLICIES
    factors: tuple[float, ...] = ()  # empty: around T/L
    windows: int = 16
    keys: int = 2  # questions per depth
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A method, a factor where it takes one, and the recipe's options for both."""

    method: str
    factor: float | None
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.method if self.factor is None else f"{self.method} {self.factor:.4g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Perplexity with its standard error, and the share of pass keys found, at one length. `means`
    are the windows' mean losses in nats: of the same tokens at every length, for every model."""

    length: int
    perplexity: float
    error: float
    keys: float
    means: tuple[float, ...]

    def above(self, own: Measured) -> tuple[float, float]:
        """By which share the perplexity lies above `own`'s, and one standard error of that, over
        windows: what differs between texts is in both and cancels."""
        mean, error = mean_and_error(np.array(self.means) - np.array(own.means))
        return float(np.exp(mean) - 1), float(np.exp(mean) * error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Candidate):
    """A candidate's figures at L and at T, or why it was not measured; `lacks` says what keeps it
    from holding, None where it holds."""

    short: Measured | None = None
    long: Measured | None = None
    lacks: str | None = None

    @property
    def holds(self) -> bool:
        return self.lacks is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Everything tried. `best` is the trial to use, None where none holds."""

    model: str
    setting: AdviseSetting
    own: Measured  # the model as it is, at the length it was trained on
    trials: tuple[Trial, ...]
    best: Trial | None
    text: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "setting": asdict(self.setting),
            "own": asdict(self.own),
            "trials": [{**asdict(trial), "holds": trial.holds} for trial in self.trials],
            "best": None if self.best is None else asdict(self.best),
            "text": dict(self.text),
            "versions": dict(self.versions),
        }

    def save(self, folder: Path) -> list[Path]:
        """Write advise.json and recipe.yaml, which is called nearest.yaml where nothing holds, in
        place of what an earlier run left; returns where."""
        for name in (RECIPE_NAME, NEAREST_NAME):
            (folder / name).unlink(missing_ok=True)
        places = [folder / "advise.json"]
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        places[0].write_text(text + "\n", encoding="utf-8")
        if recipe := self.recipe():
            places.append(folder / (RECIPE_NAME if self.best else NEAREST_NAME))
            places[1].write_text(recipe, encoding="utf-8")
        return places

    def lines(self) -> list[str]:
        """The table and the recommendation."""
        short, long = (format_size(n) for n in (self.own.length, self.setting.target))
        head = (
            f"{'':<18}{'perplexity at ' + short:>20}{'above own':>16}{'at ' + long:>10}"
            f"{'above own':>16}{'keys at ' + short:>13}{'at ' + long:>8}"
        )
        own = self.own
        rows = [head, f"{'as it is':<18}{own.perplexity:>20.3f}{'':>42}{_share(own):>13}"]
        for trial in self.trials:
            rows.append(_line(trial, own))
        if own.keys == 0:
            rows.append(
                f"the model itself finds no pass key at {short}: keys say nothing here, only "
                "perplexity counts"
            )
        return [*rows, *self._verdict()]

    def _verdict(self) -> list[str]:
        limits = self.setting.limits
        ask = (
            f"perplexity at most {100 * limits.perplexity:g} % above the model's own, "
            f"{100 * limits.keys:g} % of its pass keys"
        )
        if self.best is not None:
            what = "no scaling factor holds, it does"
            if self.best.factor is not None:
                what = "the smallest factor that holds"
            return [f"use {self.best.name}: {what} ({ask})"]
        nearest = nearest_trial(self.trials)
        if nearest is None:
            return ["nothing could be measured"]
        return [
            f"nothing holds ({ask}); nearest is {nearest.name}, which lacks {nearest.lacks}. Ask "
            "for a smaller --target, allow more with --worse, or fine-tune at the longer context"
        ]

    def recipe(self) -> str:
        """The recipe file of the best trial, else of the nearest one. Empty without any."""
        import yaml  # type: ignore[import-untyped, unused-ignore]

        chosen = self.best or nearest_trial(self.trials)
        if chosen is None:
            return ""
        assert chosen.short is not None and chosen.long is not None
        what = "holds" if chosen.holds else f"does not hold, it lacks {chosen.lacks}"
        name = RECIPE_NAME if chosen.holds else NEAREST_NAME
        lines = [
            f"# ctx-export --recipe {name}",
            "#",
            f"# Measured by ctx-eval advise: {chosen.name} {what}.",
            f"# Perplexity {_value(chosen.short)} at {chosen.short.length} tokens, "
            f"{_value(chosen.long)} at {chosen.long.length} (the model's own "
            f"{_value(self.own)} at {self.own.length}).",
        ]
        values = {"model": self.model, **chosen.options}
        return "\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False)


def _value(measured: Measured) -> str:
    return f"{measured.perplexity:.3f} ± {measured.error:.3f}"


def _share(measured: Measured) -> str:
    return f"{100 * measured.keys:.0f} %"


def _line(trial: Trial, own: Measured) -> str:
    if trial.short is None or trial.long is None:
        return f"{trial.name:<18}  {trial.lacks}"
    figures = (
        f"{trial.short.perplexity:>20.3f}{_above(trial.short, own):>16}"
        f"{trial.long.perplexity:>10.3f}{_above(trial.long, own):>16}"
        f"{_share(trial.short):>13}{_share(trial.long):>8}"
    )
    return f"{trial.name:<18}{figures}  {'holds' if trial.holds else 'lacks ' + str(trial.lacks)}"


def _above(measured: Measured, own: Measured) -> str:
    share, error = measured.above(own)
    digits = 1 if abs(share) < 1 else 0
    return f"{100 * share:+.{digits}f} ± {100 * error:.{digits}f} %"


def nearest_trial(trials: Sequence[Trial]) -> Trial | None:
    """The measured trial with most keys at T, then the lowest perplexity there."""
    measured = [trial for trial in trials if trial.long is not None]
    if not measured:
        return None

    def rank(trial: Trial) -> tuple[float, float]:
        assert trial.long is not None
        return -trial.long.keys, trial.long.perplexity

    return min(measured, key=rank)


def candidates(method: str, spec: ModelSpec, setting: AdviseSetting) -> list[Candidate]:
    """What is tried of a method, the smallest factor first."""
    from ctx_export import cache
    from ctx_export.scaling import find

    options: dict[str, Any] = {"method": method, "target": setting.target}
    if cache.find(method) is not None:
        return [Candidate(method=method, factor=None, options=options)]
    if not find(method).uses_factor:
        return [Candidate(method=method, factor=None, options=options)]
    whole = setting.target / spec.original_context
    wanted = setting.factors or tuple(share * whole for share in _SHARES)
    factors = sorted({round(max(1.0, factor), 4) for factor in wanted})
    return [
        Candidate(method=method, factor=factor, options={**options, "factor": factor})
        for factor in factors
        if factor > 1
    ]


def lacking(own: Measured, short: Measured, long: Measured, limits: Limits) -> str | None:
    """What keeps figures from holding beside the model's own, None where they hold."""
    highest = own.perplexity * (1 + limits.perplexity)
    least = own.keys * limits.keys
    for where, measured in (("short", short), ("long", long)):
        if measured.perplexity > highest:
            return f"{where} perplexity {measured.perplexity:.3f} over {highest:.3f}"
        if measured.keys < least - 1e-9:
            return f"{where} keys {100 * measured.keys:.0f} % under {100 * least:.0f} %"
    return None


def choose(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the smallest factor that holds, then the lowest perplexity at T; a trial
    without a factor where no other holds."""
    holding = [trial for trial in trials if trial.holds and trial.long is not None]

    def rank(trial: Trial) -> tuple[bool, float, float]:
        assert trial.long is not None
        return trial.factor is None, trial.factor or 1.0, trial.long.perplexity

    return min(holding, key=rank, default=None)
