"""What PyTorch says of packages that transformers has no model for: bounded caches, frequencies
that follow the length, layers of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.manifest import BOUNDED, CacheInfo, Manifest
from ctx_export.core.progress import Progress
from ctx_export.runtime.landmarks import LandmarkTokens, fed_tokens
from ctx_export.runtime.slots import held_tokens
from ctx_export.validate.choices import clear_keys, decided
from ctx_export.validate.compare import RowErrors, logit_scale, row_errors
from ctx_export.validate.pairwise import PairwiseReference, Past
from ctx_export.validate.positions import (
    ValidationPlan,
    decode_feeds,
    decoded_positions,
    feed_limit,
    probe_feeds,
    ragged_chunks,
    rope_lengths,
)
from ctx_export.validate.quantised import CacheNumbers, Turning, cache_numbers
from ctx_export.validate.reference_side import (
    BlockReference,
    References,
    counter,
    kept_rows,
    random_tokens,
)
from ctx_export.validate.rope_parameters import Scaling
from ctx_export.validate.rope_tables import (
    Table,
    checked_lengths,
    length_table,
    own_tables,
    package_table,
    rope_at,
)
from ctx_export.validate.synthetic import CALIBRATION_TOKENS, Cache, synthetic_cache
from ctx_export.validate.torch_reference import Rotary, TorchReference, has_kinds, load_config
from ctx_export.validate.turning import Heads
from ctx_export.validate.visibility import rule_of

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def needs_pairs(manifest: Manifest) -> bool:
    """Whether a package is compared pair by pair: it has a bounded cache, unrotated keys, or
    layers with tables of their own."""
    bounded = any(layer.policy == BOUNDED or layer.keys != "rotated" for layer in manifest.layers)
    return bounded or manifest.scaling.get("layers") is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairwiseSettings:
    """How PyTorch is run pair by pair: from where, under which caches, with which table.

    `own_windows`: the layers see what transformers' own model sees, so that its error can be
    printed.
    """

    checkpoint: Path
    caches: tuple[CacheInfo, ...]
    scaling: Scaling
    table: Callable[[int], Table]
    own_tables: tuple[Table | None, ...]  # per layer, None: `table`
    checked_lengths: tuple[int, ...]
    follows_length: bool
    own_windows: bool
    weights: str
    peers: tuple[str, ...] = ()
    by_layer: bool = False
    numbers: tuple[CacheNumbers, ...] | None = None  # of a quantised cache

    @classmethod
    def of(cls, manifest: Manifest, checkpoint: Any, **options: Any) -> PairwiseSettings:
        """Of a package and its `Checkpoint`; `options` are the fields with defaults."""
        windows = tuple(cache.window for cache in manifest.layers)
        sinks = any(cache.sinks for cache in manifest.layers)
        return cls(
            checkpoint=checkpoint.directory,
            caches=manifest.layers,
            scaling=Scaling.of(manifest),
            table=package_table(manifest),
            own_tables=own_tables(manifest),
            checked_lengths=checked_lengths(manifest),
            follows_length=length_table(manifest) is not None,
            own_windows=windows == checkpoint.spec.windows
            and not sinks
            and all(cache.parameters is None for cache in manifest.layers)
            and manifest.scaling.get("layers") is None
            and not has_kinds(load_config(checkpoint.directory)),
            weights=manifest.precision,
            numbers=cache_numbers(manifest),
            **options,
        )

    @property
    def landmarks(self) -> LandmarkTokens | None:
        """Tokens that the model is fed between those of a text."""
        return LandmarkTokens.of(self.caches)

    def fed(self, tokens: int) -> int:
        """Tokens that the model has had of the first `tokens` of a text."""
        return tokens if self.landmarks is None else fed_tokens(self.landmarks, tokens)

    def check(self) -> None:
        """Raise UserError, before anything is loaded, for what has no reference."""
        rope_at(self.scaling, load_config(self.checkpoint), self.scaling.target)
        for cache in self.caches:
            rule_of(cache, self.scaling.original_context)

    def open(self, compute: str = "fp32") -> PairwiseReference:
        """The model computing in `compute`."""
        original = self.scaling.original_context
        model = PairwiseReference(
            self.checkpoint,
            [rule_of(cache, original) for cache in self.caches],
            [self.layer_table(layer) for layer in range(len(self.caches))],
            weights=self.weights,
            compute=compute,
            by_layer=self.by_layer,
        )
        model.hold(self.numbers)
        return model

    def open_transformers(self, length: int) -> TorchReference:
        """transformers' model under the method's words for a forward of `length` tokens."""
        rope = rope_at(self.scaling, load_config(self.checkpoint), length)
        model = TorchReference(self.checkpoint, rope, weights=self.weights, by_layer=self.by_layer)
        model.hold(self.numbers)
        return model

    def layer_table(self, layer: int) -> Callable[[int], tuple[NDArray[np.float64], float]]:
        """A layer's float64 table at a rope length."""

        def at(length: int) -> tuple[NDArray[np.float64], float]:
            inv_freq, multiplier = self.own_tables[layer] or self.table(length)
            return inv_freq.astype(np.float64), multiplier

        return at


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticPast:
    """Unrotated keys and values for every probe: the first P tokens of a full layer; for a ring
    the tokens that it still holds, with the same rows wherever the probe is. Positions are those
    of the tokens that the model is fed."""

    caches: tuple[CacheInfo, ...]
    rows: Cache  # [1,Hkv,P,D] per layer
    heads: tuple[Heads, ...]  # per layer
    tables: tuple[tuple[NDArray[np.float64], float], ...]  # per layer, of rotated keys
    precision: str  # of the numbers
    numbers: tuple[CacheNumbers, ...] | None = None  # that a quantised cache holds them as
    landmarks: LandmarkTokens | None = None  # that the model is fed between those of a text

    def past(self, start: int) -> Past:
        """What the layers hold of the tokens before position `start`."""
        tokens = tuple(held_tokens(start, cache) for cache in self.caches)
        kept = [len(part) for part in tokens]
        keys, values = (
            tuple(array[:, :, :count] for array, count in zip(arrays, kept, strict=True))
            for arrays in (self.rows.keys, self.rows.values)
        )
        keys = tuple(
            clear_keys(key, cache, self.precision)
            for key, cache in zip(keys, self.caches, strict=True)
        )
        if self.numbers is not None:
            keys, values = self._as_held(keys, values, tokens)
        return Past(keys=keys, values=values, tokens=tokens, start=start)

    def _as_held(
        self, keys: tuple[Floats, ...], values: tuple[Floats, ...], tokens: tuple[Ints, ...]
    ) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
        """Keys and values that a quantised cache stores without rounding."""
        import torch

        assert self.numbers is not None
        held_keys, held_values = [], []
        for layer, numbers in enumerate(self.numbers):
            turning = Turning(
                heads=self.heads[layer], table=self.tables[layer], tokens=tokens[layer]
            )
            key = numbers.turned_keys(torch.from_numpy(keys[layer]), turning)
            held_keys.append(key.float().numpy())
            held_values.append(numbers.values(torch.from_numpy(values[layer])).numpy())
        return tuple(held_keys), tuple(held_values)

    def first(self, tokens: int) -> Cache:
        """The same after `tokens` tokens of text as the package stores it: rotated keys at their
        absolute positions."""
        past = self.past(tokens if self.landmarks is None else fed_tokens(self.landmarks, tokens))
        parts = zip(past.keys, past.tokens, self.caches, self.heads, self.tables, strict=True)
        keys = tuple(
            heads.rotated(key, table, positions) if cache.keys == "rotated" else key
            for key, positions, cache, heads, table in parts
        )
        return Cache(keys=keys, values=past.values, seen=tokens)


def pairwise_logits(
    settings: PairwiseSettings, plan: ValidationPlan, progress: Progress
) -> References:
    """Run PyTorch over the plan: in float32, in the peers' precisions, and transformers' own."""
    progress.stage("loading PyTorch")
    model = settings.open()
    progress.stage("running PyTorch")
    tokens = random_tokens(max(plan.prefill, CALIBRATION_TOKENS), model.vocab)
    past = _synthetic(model, settings, plan, tokens)
    calls = _calls(settings, plan, tokens, model.vocab, past)
    runs = 1 + (settings.numbers is not None)
    model.watch(counter(progress, runs * len(calls) * model.layers))
    blocks = [_measured(model, call, settings.peers) for call in calls]
    if settings.numbers is not None:
        model.hold(None)
        blocks = [block.beside(call.run(model)) for block, call in zip(blocks, calls, strict=True)]
    lengths = settings.checked_lengths
    tables = {n: model.transformers_table(settings.scaling, n) for n in lengths}
    inv_freq, multiplier = model.transformers_table(settings.scaling, settings.scaling.target)
    layer_tables = model.own_tables()
    del model  # one model in memory at a time
    for precision in settings.peers:
        progress.stage(f"running PyTorch in {precision}")
        peer = settings.open(precision)
        peer.watch(counter(progress, len(calls) * peer.layers))
        for call, block in zip(calls, blocks, strict=True):
            kept = np.isin(call.positions, block.positions)
            block.peers[precision] = row_errors(call.run(peer)[kept], block.logits)
        del peer
    if settings.own_windows:
        progress.stage("running transformers")
        blocks[0] = replace(blocks[0], unmodified=_unmodified(settings, tokens, blocks[0], plan))
    ways = blocks[: len(blocks) - len(plan.probes)]
    return References(
        tokens=tokens[: plan.prefill],
        prefill=ways[0],
        chunks=ways[1] if settings.follows_length else None,
        decode=ways[2] if settings.follows_length else None,
        probes=tuple(zip(plan.probes, blocks[len(ways) :], strict=True)),
        probe_tokens=tokens[:CALIBRATION_TOKENS],
        cache=past,
        inv_freq=inv_freq,
        multiplier=multiplier,
        tables=tables,
        layer_tables=layer_tables,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One computation of the plan: `run` gives the logits [R,V] at `positions` [R]."""

    positions: Ints
    rows: Ints  # [R] of the forward, landmark tokens included
    run: Callable[[PairwiseReference], Floats]


def _calls(
    settings: PairwiseSettings,
    plan: ValidationPlan,
    tokens: Ints,
    vocab: int,
    past: SyntheticPast | None,
) -> list[_Call]:
    """The prefill; its chunks and its decoding where they are something else; the probes."""
    rows = kept_rows(plan, vocab)
    calls = [_sequence(tokens[: plan.prefill], rows, None, settings.landmarks)]
    if settings.follows_length:
        calls.append(_sequence(tokens[: plan.prefill], rows, ragged_chunks(plan.prefill)))
        decoded = np.asarray(decoded_positions(plan), np.int64)
        feeds = decode_feeds(plan, feed_limit(vocab))
        calls.append(_sequence(tokens[: sum(feeds)], decoded, feeds))
    for probe in plan.probes:
        assert past is not None
        ids, at = tokens[: probe.tokens], past.past(settings.fed(probe.start))
        lengths = rope_lengths(probe_feeds(probe.tokens), probe.start)
        calls.append(_probe(ids, probe.start, at, lengths, settings.landmarks))
    return calls


def _sequence(
    tokens: Ints, rows: Ints, feeds: Sequence[int] | None, landmarks: LandmarkTokens | None = None
) -> _Call:
    """All of `tokens` in one planned feed, or in unplanned `feeds`."""
    lengths = None if feeds is None else rope_lengths(feeds)
    fed, at = _spread(tokens, 0, landmarks)
    return _Call(
        positions=rows,
        rows=at[rows],
        run=lambda model: model.logits(fed, lengths, rows=at[rows].tolist()),
    )


def _probe(
    tokens: Ints, start: int, past: Past, lengths: Ints, landmarks: LandmarkTokens | None
) -> _Call:
    fed, at = _spread(tokens, start, landmarks)
    planned = lengths if landmarks is None else None  # frequencies do not follow the length
    return _Call(
        positions=np.arange(start, start + len(tokens), dtype=np.int64),
        rows=at,
        run=lambda model: model.probe(past, fed, planned)[at],
    )


def _spread(tokens: Ints, seen: int, landmarks: LandmarkTokens | None) -> tuple[Ints, Ints]:
    """What is fed of `tokens` [N] after `seen` ones, and the rows of their logits [N]."""
    if landmarks is None:
        return tokens, np.arange(len(tokens))
    counts, before = np.array([len(tokens)]), np.array([seen])
    fed, _, rows = landmarks.spread(tokens[None], counts, before)
    return fed[0], rows[0]


def _synthetic(
    model: PairwiseReference, settings: PairwiseSettings, plan: ValidationPlan, tokens: Ints
) -> SyntheticPast | None:
    """The keys and values that every probe takes its own from."""
    if not plan.probes:
        return None
    own = model.own_past(tokens[:CALIBRATION_TOKENS])
    starts = [settings.fed(probe.start) for probe in plan.probes]
    kept = [max(len(held_tokens(start, cache)) for start in starts) for cache in settings.caches]
    sample = Cache(keys=own.keys, values=own.values)
    return SyntheticPast(
        caches=settings.caches,
        rows=synthetic_cache(sample, kept, settings.weights),
        heads=model.heads,
        tables=tuple(
            settings.layer_table(layer)(settings.scaling.target)
            for layer in range(len(settings.caches))
        ),
        precision=settings.weights,
        numbers=settings.numbers,
        landmarks=settings.landmarks,
    )


def _measured(model: PairwiseReference, call: _Call, peers: Sequence[str]) -> BlockReference:
    """The reference of one call, without the rows whose choice of blocks rounding to float32 can
    turn, where nothing says which of two is right, and those that read such tokens."""
    logits = call.run(model)
    margins = model.margins()
    if not margins.ndim:
        margins = np.broadcast_to(margins, int(call.rows.max()) + 1)
    clear = decided(margins, "fp32")[call.rows]
    return BlockReference(
        positions=call.positions[clear],
        logits=logits[clear],
        own_table=None,
        unmodified=None,
        peers={},
        scale=logit_scale(logits),
        undecided=int((~clear).sum()),
        decided={name: decided(margins, name)[call.rows][clear] for name in peers},
    )


def _unmodified(
    settings: PairwiseSettings, tokens: Ints, block: BlockReference, plan: ValidationPlan
) -> RowErrors:
    """The error of transformers' own forward over the planned prefill."""
    model = settings.open_transformers(plan.prefill)
    logits = model.logits(
        tokens[: plan.prefill], rows=block.positions.tolist(), rotary=Rotary.UNMODIFIED
    )
    return row_errors(logits[0], block.logits)
