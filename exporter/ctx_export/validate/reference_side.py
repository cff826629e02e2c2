"""What PyTorch says: logits of the prefill and of every probe, and its own errors beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.progress import Progress
from ctx_export.validate.compare import RowErrors, logit_scale, row_errors
from ctx_export.validate.positions import Probe, ValidationPlan
from ctx_export.validate.quantised import CacheNumbers, as_held
from ctx_export.validate.synthetic import CALIBRATION_TOKENS, Cache, synthetic_cache
from ctx_export.validate.torch_reference import HuggingFaceRope, Rotary, TorchReference

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_TOKEN_SEED = 20230831
# Rows of the prefill whose logits are kept: all, or evenly spread ones within this much memory.
_LOGIT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSettings:
    """How PyTorch is run: from where, with which rotation, in which precisions."""

    checkpoint: Path
    rope: HuggingFaceRope
    weights: str  # the package's precision; the model's weights are rounded to it
    peers: tuple[str, ...] = ()  # low precisions that PyTorch is also run in
    by_layer: bool = False
    numbers: tuple[CacheNumbers, ...] | None = None  # of a quantised cache

    def open(self, compute: str = "fp32") -> TorchReference:
        """The model computing in `compute`."""
        model = TorchReference(
            self.checkpoint,
            self.rope,
            weights=self.weights,
            compute=compute,
            by_layer=self.by_layer,
        )
        model.hold(self.numbers)
        return model


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReference:
    """Logits [R,V] of rows computed together, and PyTorch's own errors on them.

    `positions` [R] are absolute. `own_table`: float64 angles over transformers' own table.
    `unmodified`: transformers as it is. Both are None where transformers has no such computation.
    `peers`: PyTorch in low precisions, by name. `scale`: what errors are shares of. `unquantised`:
    logits [R,V] over caches that keep every number as it is; None where the package's do.
    """

    positions: Ints
    logits: Floats
    own_table: RowErrors | None
    unmodified: RowErrors | None
    peers: dict[str, RowErrors]
    scale: float
    unquantised: Floats | None = None
    quantisation: RowErrors | None = None  # what quantising changes in PyTorch's own logits
    # Rows left out, where rounding to float32 decides which blocks are chosen; and in each lower
    # precision, which rows [R] are compared there.
    undecided: int = 0
    decided: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def beside(self, unquantised: Floats) -> BlockReference:
        """The same with the logits over unquantised caches."""
        errors = row_errors(unquantised, self.logits, self.scale)
        return replace(self, unquantised=unquantised, quantisation=errors)

    def part(self, rows: NDArray[Any]) -> BlockReference:
        """`rows` of it, indices or [R] bools, with errors still relative to the whole scale."""
        return replace(
            self,
            positions=self.positions[rows],
            logits=self.logits[rows],
            own_table=_some(self.own_table, rows),
            unmodified=_some(self.unmodified, rows),
            peers={name: errors.part(rows) for name, errors in self.peers.items()},
            unquantised=None if self.unquantised is None else self.unquantised[rows],
            quantisation=_some(self.quantisation, rows),
            decided={name: kept[rows] for name, kept in self.decided.items()},
        )

    def computed_in(self, precision: str) -> BlockReference:
        """The rows that say how right a computation in `precision` is."""
        kept = self.decided.get(precision)
        if kept is None:
            return self
        return replace(self.part(kept), undecided=self.undecided + int((~kept).sum()))


def _some(errors: RowErrors | None, rows: NDArray[Any]) -> RowErrors | None:
    return None if errors is None else errors.part(rows)


class CacheSource(Protocol):
    """Keys and values of a sequence's first tokens, as the package stores them."""

    def first(self, tokens: int) -> Cache: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What the package's side is compared with; a probe follows the beginning of `cache`.

    `chunks` and `decode` are given where the frequencies follow the length, else they are the
    prefill's. `tables`: transformers' inv_freq [F] and multiplier by rope length;
    `layer_tables`: those of layers of a kind of their own.
    """

    tokens: Ints  # [N] of the prefill
    prefill: BlockReference
    chunks: BlockReference | None = None
    decode: BlockReference | None = None
    probes: tuple[tuple[Probe, BlockReference], ...]
    probe_tokens: Ints  # a probe feeds the first of them
    cache: CacheSource | None
    inv_freq: Floats
    multiplier: float
    tables: Mapping[int, tuple[Floats, float]] = field(default_factory=dict)
    layer_tables: tuple[tuple[Floats, float] | None, ...] = ()

    @property
    def undecided(self) -> int:
        """Rows left out of all blocks."""
        given = (self.prefill, self.chunks, self.decode, *(block for _, block in self.probes))
        return sum(block.undecided for block in given if block is not None)

    def computed_in(self, precision: str) -> References:
        """The rows that say how right a computation in `precision` is."""
        chunks, decode = (
            None if block is None else block.computed_in(precision)
            for block in (self.chunks, self.decode)
        )
        return replace(
            self,
            prefill=self.prefill.computed_in(precision),
            chunks=chunks,
            decode=decode,
            probes=tuple((probe, block.computed_in(precision)) for probe, block in self.probes),
        )


def random_tokens(count: int, vocab: int) -> Ints:
    """`count` seeded token ids, [N]."""
    return np.random.default_rng(_TOKEN_SEED).integers(0, vocab, count, dtype=np.int64)


def kept_rows(plan: ValidationPlan, vocab: int) -> Ints:
    """Positions of the prefill to compare: the table's with their neighbours, and as many evenly
    spread ones as fit into memory (all of them, for a small vocabulary)."""
    limit = max(64, _LOGIT_BYTES // (4 * vocab))
    if plan.prefill <= limit:
        return np.arange(plan.prefill, dtype=np.int64)
    near = [p + step for p in plan.positions for step in (-2, -1, 0, 1, 2)]
    spread = np.linspace(0, plan.prefill - 1, limit).astype(np.int64)
    wanted = np.unique([*near, *spread])
    return np.asarray(wanted[(wanted >= 0) & (wanted < plan.prefill)], np.int64)


def reference_logits(
    settings: ReferenceSettings, plan: ValidationPlan, progress: Progress
) -> References:
    """Run PyTorch over the plan, first in float32, then in the peers' precisions."""
    progress.stage("loading PyTorch")
    model = settings.open()
    progress.stage("running PyTorch")
    tokens = random_tokens(max(plan.prefill, CALIBRATION_TOKENS), model.vocab)
    cache = _synthetic(model, plan, tokens, settings)
    calls = _calls(plan, tokens, kept_rows(plan, model.vocab), cache)
    runs = len(Rotary) + (settings.numbers is not None)
    model.watch(counter(progress, runs * len(calls) * model.layers))
    measured = [_measured(model, call) for call in calls]
    if settings.numbers is not None:
        model.hold(None)
        measured = [
            block.beside(call.run(model, Rotary.EXACT))
            for block, call in zip(measured, calls, strict=True)
        ]
    inv_freq, multiplier = model.inv_freq, model.multiplier
    del model  # one model in memory at a time
    for precision in settings.peers:
        progress.stage(f"running PyTorch in {precision}")
        peer = settings.open(precision)
        peer.watch(counter(progress, len(calls) * peer.layers))
        for call, block in zip(calls, measured, strict=True):
            block.peers[precision] = row_errors(call.run(peer, Rotary.EXACT), block.logits)
        del peer
    return References(
        tokens=tokens[: plan.prefill],
        prefill=measured[0],
        probes=tuple(zip(plan.probes, measured[1:], strict=True)),
        probe_tokens=tokens[:CALIBRATION_TOKENS],
        cache=cache,
        inv_freq=inv_freq,
        multiplier=multiplier,
    )


def counter(progress: Progress, total: int) -> Callable[[], None]:
    """A function to call after each of `total` equal parts."""
    parts = itertools.count(1)
    return lambda: progress.update(next(parts), total)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One computation of the plan: `run` gives the logits [R,V] at `positions` [R]."""

    positions: Ints
    run: Callable[[TorchReference, Rotary], Floats]


def _calls(plan: ValidationPlan, tokens: Ints, rows: Ints, cache: Cache | None) -> list[_Call]:
    """The prefill, then the probes."""

    def prefill(model: TorchReference, rotary: Rotary) -> Floats:
        ids = tokens[: plan.prefill]
        logits: Floats = model.logits(ids, rows=rows.tolist(), rotary=rotary)[0]
        return logits

    def probing(probe: Probe) -> Callable[[TorchReference, Rotary], Floats]:
        def run(model: TorchReference, rotary: Rotary) -> Floats:
            assert cache is not None
            past = cache.first(probe.start)
            logits: Floats = model.probe(past, tokens[: probe.tokens], rotary=rotary)[0]
            return logits

        return run

    calls = [_Call(positions=rows, run=prefill)]
    for probe in plan.probes:
        positions = np.arange(probe.start, probe.end, dtype=np.int64)
        calls.append(_Call(positions=positions, run=probing(probe)))
    return calls


def _synthetic(
    model: TorchReference, plan: ValidationPlan, tokens: Ints, settings: ReferenceSettings
) -> Cache | None:
    """The cache that every probe takes the beginning of: numbers that the package's can hold."""
    if not plan.probes:
        return None
    sample = model.own_cache(tokens[:CALIBRATION_TOKENS])
    last = max(probe.start for probe in plan.probes)
    cache = synthetic_cache(sample, last, settings.weights)
    return cache if settings.numbers is None else as_held(cache, settings.numbers)


def _measured(model: TorchReference, call: _Call) -> BlockReference:
    """The reference of one call and what transformers' own angles and table change in it."""
    exact = call.run(model, Rotary.EXACT)
    return BlockReference(
        positions=call.positions,
        logits=exact,
        own_table=row_errors(call.run(model, Rotary.OWN_TABLE), exact),
        unmodified=row_errors(call.run(model, Rotary.UNMODIFIED), exact),
        peers={},
        scale=logit_scale(exact),
    )
