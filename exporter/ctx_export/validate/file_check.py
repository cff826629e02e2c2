"""The file check: a package without scaling against the ONNX file that it was rewritten from.

Within the trained context, at the table that the file itself rotates by, nothing may change. That
proves the rewriting by the file alone; a comparison with PyTorch proves the scaling.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.progress import Progress
from ctx_export.core.recipe import Recipe
from ctx_export.core.rope_settings import RopeSettings
from ctx_export.frontends.source import Source
from ctx_export.scaling.base import FrequencyTable
from ctx_export.validate.compare import UNIT_ROUNDOFF, row_errors
from ctx_export.validate.original_file import (
    CannotRun,
    Floats,
    OriginalFile,
    check_shape,
    compute_in_float,
)
from ctx_export.validate.rows import error_text, json_number

FLOAT32_LIMIT = 1e-4  # of the logit scale
ROUNDED_LIMIT = 2 / 127
_NOISE_FACTOR, _ROUNDOFFS = 2.0, 8.0
_MOST_TOKENS, _SEQUENCES, _SEED = 96, 2, 20231101


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSection:
    """What the file check found, in shares of the logit scale; `state` says why nothing was
    measured. `largest` by how the tokens were fed."""

    file: str
    state: str
    largest: tuple[tuple[str, float], ...] = ()
    limit: float = FLOAT32_LIMIT
    rule: str = ""

    @property
    def passed(self) -> bool:
        """ "not <=": an error that is no number fails; what was not measured does not."""
        return all(error <= self.limit for _, error in self.largest)

    @property
    def max_error(self) -> float | None:
        return max((error for _, error in self.largest), default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "state": self.state,
            "errors": {how: json_number(error) for how, error in self.largest},
            "limit": self.limit,
            "rule": self.rule,
            "passed": self.passed,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> FileSection:
        """The inverse of `to_json`."""
        errors = {how: math.inf if e is None else float(e) for how, e in raw["errors"].items()}
        return cls(
            file=raw["file"],
            state=raw["state"],
            largest=tuple(errors.items()),
            limit=float(raw["limit"]),
            rule=raw["rule"],
        )

    def remark(self) -> str:
        """One line for the report and the terminal."""
        if not self.largest:
            return f"file check: not measured, {self.state}"
        told = ", ".join(f"{error_text(error)} in {how}" for how, error in self.largest)
        verdict = "computes what" if self.passed else "DOES NOT COMPUTE WHAT"
        return (
            f"file check: without scaling the rewritten graph {verdict} {self.file} does: largest "
            f"error {told} ({self.rule})"
        )


def check_file(source: Source, directory: Path, progress: Progress) -> FileSection:
    """Rewrite `source` without scaling and compare it with its own file on random tokens, in one
    call and, where the file has a cache, in two.

    Works in a directory below `directory`, which it removes. A file that onnxruntime cannot run on
    a CPU is not measured, which the section says.
    """
    assert source.file is not None
    progress.stage("comparing with the file")
    plan = own_plan(source)
    count = min(plan.original_context, _MOST_TOKENS)
    tokens = np.random.default_rng(_SEED).integers(
        0, source.spec.vocab, (_SEQUENCES, count), dtype=np.int64
    )
    try:
        original = OriginalFile(source.file.path, source.spec.head_dim)
        expected = [original.logits(tokens)]
        limit, rule = _limit(source, tokens, expected)
    except CannotRun as error:
        return FileSection(
            file=source.file.path.name,
            state=f"onnxruntime cannot run {source.file.path.name} on a CPU: {error}",
        )
    splits: list[list[int] | None] = [None]
    pieces, chunked = _in_two_calls(original, tokens)
    if chunked is not None:
        expected.append(chunked)
        splits.append(pieces)
    if original.unrounded:
        rule += (
            f"; the file without rounding activations in {original.unrounded} places outside of"
        )
        rule += " products"
    for logits in expected:
        check_shape(logits, (*tokens.shape, source.spec.vocab))
    with tempfile.TemporaryDirectory(prefix=".file-check.", dir=directory) as place:
        found = _package_logits(source, plan, Path(place), tokens, splits)
    names = ("one call", "two calls")
    return FileSection(
        file=source.file.path.name,
        state="measured",
        largest=tuple(
            (how, _error(ours, theirs))
            for how, ours, theirs in zip(names, found, expected, strict=False)
        ),
        limit=limit,
        rule=rule,
    )


def _in_two_calls(
    original: OriginalFile, tokens: NDArray[np.int64]
) -> tuple[list[int], Floats | None]:
    """Logits through the file's own cache: two pieces, or where its mask takes no second piece, a
    single token after all others."""
    count = tokens.shape[1]
    for last in (count // 3, 1) if original.has_cache and count > 2 else ():
        pieces = [count - last, last]
        try:
            return pieces, original.logits(tokens, pieces)
        except CannotRun:
            continue
    return [], None


def own_plan(source: Source) -> Plan:
    """The plan that changes nothing: the file's own tables, or its config's settings where they
    follow the length."""
    file, spec = source.file, source.spec
    assert file is not None
    recipe = Recipe(model=str(file.path), engine="none", validate=False, max_batch=_SEQUENCES)
    turning = [i for i in range(spec.layers) if spec.rope_of(i).rotates]
    if any(file.tables[layer] is None for layer in turning):
        return make_plan(spec, recipe)
    plain = replace(spec, rope=_plain(spec.rope), ropes=tuple(map(_plain, spec.ropes)))
    plan = make_plan(plain, recipe)
    main = file.tables[next(i for i in turning if spec.rope_of(i) == spec.rope)]
    assert main is not None
    still = FrequencyTable(inv_freq=main.inv_freq * 0, multiplier=1.0)
    return replace(plan, table=main, tables=tuple(table or still for table in file.tables))


def _plain(rope: RopeSettings) -> RopeSettings:
    return replace(rope, method="none", parameters={})


def _limit(
    source: Source, tokens: NDArray[np.int64], expected: Sequence[Floats]
) -> tuple[float, str]:
    """The limit and its words.

    In low precision two right orders of computing differ: by what they do in the file itself, with
    and without onnxruntime's optimisations and in one call or two, twice that, and some roundoffs
    for each attention that was replaced, which add up like a random walk. Activations of 8 bits
    jump by a step where two orders of computing fall on two sides of a border.
    """
    file = source.file
    assert file is not None
    if file.rounds_activations:
        return ROUNDED_LIMIT, f"limit {ROUNDED_LIMIT:.2g}, two steps of 8-bit activations"
    if source.precision == "fp32":
        return FLOAT32_LIMIT, f"limit {FLOAT32_LIMIT:g}"
    plain = OriginalFile(file.path, source.spec.head_dim, optimise=False)
    noise = max(_error(other, expected[0]) for other in (plain.logits(tokens), *expected[1:]))
    roundoffs = _ROUNDOFFS * math.sqrt(2 * source.spec.layers)
    floor = roundoffs * UNIT_ROUNDOFF[source.precision]
    return (
        _NOISE_FACTOR * noise + floor,
        f"limit {_NOISE_FACTOR:g} × the {error_text(noise)} by which the file differs from itself "
        f"in another order of computing + {floor:.2g}",
    )


def _package_logits(
    source: Source,
    plan: Plan,
    place: Path,
    tokens: NDArray[np.int64],
    splits: Sequence[Sequence[int] | None],
) -> list[Floats]:
    """Logits of the rewritten graph, fed as the file was."""
    from ctx_export.build.model import rewritten, write_model
    from ctx_export.core.progress import SilentProgress
    from ctx_export.runtime.session import open_session

    model = rewritten(source, plan)
    compute_in_float(model.graph)
    write_model(model, source, plan, place, SilentProgress()).save(place)
    found = []
    with open_session(
        place, "ort", batch=_SEQUENCES, providers=["CPUExecutionProvider"]
    ) as session:
        for pieces in splits:
            session.reset()
            ends = np.cumsum([0, *(pieces or [tokens.shape[1]])])
            parts = [session.feed(tokens[:, a:b]) for a, b in pairwise(ends)]
            found.append(np.concatenate(parts, axis=1))
    return found


def _error(logits: Floats, reference: Floats) -> float:
    """Largest error of [B,N,V] as a share of the logit scale; infinite where something is not
    finite."""
    flat = (-1, logits.shape[-1])
    if not np.isfinite(reference).all():
        return math.inf
    return float(row_errors(logits.reshape(flat), reference.reshape(flat)).maximum.max())
