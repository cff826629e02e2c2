"""Errors of logits against a reference, and the rules that decide. Pure numpy.

Every error is a share of the logit scale: the largest magnitude among the reference logits of the
rows compared together (one prefill, or one probe).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.errors import UserError

Floats = NDArray[np.float32]
Errors = NDArray[np.float64]

FLOAT32_TOLERANCE = 1e-3
LOW_PRECISION_FACTOR = 2.0
# Over a quantised cache a key or value near the middle between two numbers is rounded one way here
# and the other there. Few are, and each changes what its token computes by a part of what
# quantising changes: in float32 up to 16 hundredths of the largest change on the demo, and 8 of
# the mean one through 24 layers of random weights. What is allowed for it:
QUANTISATION_SHARE = 0.25  # of the largest change, beside the limit there is without it
QUANTISATION_MEAN_SHARE = 0.15  # of the mean change, in float32 and beside this much:
FLOAT32_MEAN_TOLERANCE = 1e-4
# Unit roundoff, half a unit in the last place of 1: what rounding the logits alone can cost.
UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowErrors:
    """Errors of R rows relative to `scale`, each [R]; infinite where a row is not finite."""

    scale: float
    maximum: Errors
    mean: Errors
    problems: tuple[str, ...] = ()  # NaN, Inf: one entry a kind, with the first row it is in

    def at(self, first: int, last: int) -> tuple[float, float]:
        """(largest maximum, mean of means) of the rows first … last, both included."""
        rows = slice(first, last + 1)
        return float(self.maximum[rows].max()), float(self.mean[rows].mean())

    def part(self, rows: NDArray[Any]) -> RowErrors:
        """Those of `rows`, indices or [R] bools."""
        return RowErrors(scale=self.scale, maximum=self.maximum[rows], mean=self.mean[rows])


def logit_scale(reference: Floats) -> float:
    """max |reference logits|, 1 where all are 0; raises UserError where they are no reference."""
    if reference.size == 0:
        raise ValueError(f"reference logits of shape {reference.shape} have no scale")
    if not np.isfinite(reference).all():
        raise UserError(
            "PyTorch's own float32 logits have NaN or Inf: the reference's weights are damaged or "
            "too large; nothing can be compared with it"
        )
    return float(np.abs(reference).max()) or 1.0


def row_errors(logits: Floats, reference: Floats, scale: float | None = None) -> RowErrors:
    """Errors of `logits` [R,V] against `reference` [R,V]; `scale` defaults to the reference's.

    Raises UserError for another shape or element type: that is another model, not an error.
    """
    if logits.shape != reference.shape or logits.ndim != 2:
        raise UserError(
            f"logits of shape {list(logits.shape)} cannot be compared with a reference of "
            f"{list(reference.shape)}: give the checkpoint that the package was made from"
        )
    if logits.dtype != np.float32:
        raise UserError(f"logits are {logits.dtype}: a session must return float32")
    scale = logit_scale(reference) if scale is None else scale
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    maximum, mean = np.full((2, len(logits)), np.inf)
    for row in np.flatnonzero(finite):  # a row at a time: vocabularies are large
        difference = np.abs(logits[row].astype(np.float64) - reference[row])
        maximum[row], mean[row] = difference.max() / scale, difference.mean() / scale
    return RowErrors(scale=scale, maximum=maximum, mean=mean, problems=_problems(logits, finite))


def _problems(logits: Floats, finite: NDArray[np.bool_]) -> tuple[str, ...]:
    if finite.all():
        return ()
    found = []
    for name, test in (("NaN", np.isnan), ("Inf", np.isinf)):
        rows = np.flatnonzero(test(logits).any(axis=1))
        if len(rows):
            found.append(f"{name} in {len(rows)} of {len(logits)} rows, first in row {rows[0]}")
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Largest error allowed, relative to the logit scale.

    With a `tolerance` that is the limit. Without, the low-precision rule holds: twice the error of
    PyTorch in the same `precision` on the same rows, and the unit roundoff as the floor. Over a
    `quantised` cache roundings that fall the other way are allowed for, and the mean error, which
    few of them decide, has a limit too.
    """

    precision: str  # that the logits were computed in: fp32, fp16, bf16
    tolerance: float | None  # infinite: errors are told and decide nothing
    quantised: bool = False

    @classmethod
    def of(cls, precision: str, tolerance: float | None, *, quantised: bool = False) -> Rule:
        """The rule for logits computed in `precision`, over a cache that is `quantised` or not; a
        tolerance given replaces it."""
        if tolerance is not None and not 0 < tolerance < 1:
            raise UserError(
                f"tolerance is {tolerance:g}: give a share of the logit scale above 0 and below "
                f"1, such as {FLOAT32_TOLERANCE:g}"
            )
        quantised = quantised and tolerance is None
        if tolerance is None and precision == "fp32":
            tolerance = FLOAT32_TOLERANCE
        return cls(precision=precision, tolerance=tolerance, quantised=quantised)

    @property
    def needs_peer(self) -> bool:
        """Whether PyTorch must be run in the same precision."""
        return self.tolerance is None

    def limit(self, peer: RowErrors | None, quantisation: RowErrors | None = None) -> float:
        """The largest error allowed on rows where PyTorch in that precision erred by `peer`, and
        quantising the caches changed its logits by `quantisation`."""
        change = 0.0
        if self.quantised and quantisation is not None:
            change = QUANTISATION_SHARE * float(quantisation.maximum.max())
        if self.tolerance is not None:
            return self.tolerance + change
        return self._twice(_measured(peer, "maximum").max(initial=0)) + change

    def mean_limit(
        self, peer: RowErrors | None, quantisation: RowErrors | None = None
    ) -> float | None:
        """The largest mean error of those rows that is allowed, None for any."""
        if not self.quantised or quantisation is None:
            return None
        if self.tolerance is None:
            measured = _measured(peer, "mean")
            return self._twice(measured.mean() if measured.size else 0.0)
        change = float(quantisation.mean.mean())
        return FLOAT32_MEAN_TOLERANCE + QUANTISATION_MEAN_SHARE * change

    def _twice(self, error: float) -> float:
        return LOW_PRECISION_FACTOR * float(error) + UNIT_ROUNDOFF[self.precision]

    def describe(self) -> str:
        """The rule in words."""
        if self.tolerance == np.inf:
            return "no limit, for PyTorch has other weights"
        low = f"{LOW_PRECISION_FACTOR:g} × that of PyTorch in {self.precision} + "
        if self.tolerance is None:
            low += f"{UNIT_ROUNDOFF[self.precision]:.3g}"
        largest = low if self.tolerance is None else f"{self.tolerance:g}"
        if not self.quantised:
            return f"error at most {largest} of the logit scale"
        mean = low
        if self.tolerance is not None:
            mean = f"{FLOAT32_MEAN_TOLERANCE:g} + {QUANTISATION_MEAN_SHARE:g} × that"
        return (
            f"error at most {largest} of the logit scale + {QUANTISATION_SHARE:g} × what "
            f"quantising the cache changes, in the mean at most {mean}"
        )


def _measured(peer: RowErrors | None, which: str) -> Errors:
    """Errors of PyTorch in the same precision; rows where it overflows itself excuse nothing."""
    if peer is None:
        raise ValueError("the low-precision rule needs PyTorch's error in that precision")
    errors: Errors = getattr(peer, which)
    return errors[np.isfinite(errors)]
