"""Scales of a quantised cache, from the keys and values that the model computes for some text.

PyTorch runs the model under the package's own rules of positions and visibility, layer by layer
where its weights do not fit into memory: forwards over 1024 tokens in all, fewer for models above
1B parameters, each of at most the trained context.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.cache_type import CacheType, LayerScales
from ctx_export.core.errors import UserError
from ctx_export.core.plan import Plan
from ctx_export.core.progress import Progress
from ctx_export.frontends.checkpoint import Checkpoint
from ctx_export.scaling.base import FrequencyTable
from ctx_export.validate.turning import Floats, Heads, Ints, Table

if TYPE_CHECKING:
    from ctx_export.validate.pairwise import PairwiseReference

_LOG = logging.getLogger(__name__)

MOST_TOKENS = 1024
_LEAST_TOKENS = 16
_MOST_CHARACTERS = 64  # read for each token that is used: a longer file is not read whole
_TOKEN_SEED = 20231017
DEFAULT_TEXT = Path(__file__).with_name("calibration.txt")


def calibrated(plan: Plan, checkpoint: Checkpoint, text: Path | None, progress: Progress) -> Plan:
    """`plan` with the scales of its quantised cache, chosen on the file `text`.

    Without one, on a text that comes with the exporter, or on random tokens where the checkpoint
    has no tokenizer. Raises UserError where the text cannot be read or is too short.
    """
    from ctx_export.validate.memory import reference_memory
    from ctx_export.validate.pairwise import PairwiseReference
    from ctx_export.validate.reference_side import counter
    from ctx_export.validate.visibility import rule_of

    if plan.cache_type is None:
        return plan
    tokens = calibration_tokens(checkpoint, text)
    progress.stage("loading PyTorch")
    try:
        model = PairwiseReference(
            checkpoint.directory,
            [rule_of(cache, plan.original_context) for cache in plan.caches],
            [_table(plan, own) for own in plan.tables],
            weights=plan.precision,
            by_layer=reference_memory(checkpoint).by_layer,
        )
    except UserError as error:
        raise UserError(
            f"the cache's scales cannot be chosen: {error}; --kv-cache-dtype auto needs none"
        ) from None
    progress.stage("calibrating the cache")
    largest = np.zeros((2, plan.spec.layers, plan.spec.kv_heads))
    pieces = list(_pieces(tokens, plan.original_context))
    model.watch(counter(progress, len(pieces) * model.layers))
    for piece in pieces:
        largest = np.maximum(largest, _magnitudes(model, plan, piece))
    source = _source(checkpoint, text)
    return replace(
        plan,
        scales=_scales(largest, plan.cache_type),
        calibration=f"{len(tokens)} {source}",
    )


def _magnitudes(model: PairwiseReference, plan: Plan, tokens: Ints) -> NDArray[np.float64]:
    """The largest magnitudes [2,layers,Hkv] of keys, as they are cached, and values."""
    past = model.own_past(tokens)
    found = []
    for layer, key in enumerate(past.keys):
        rotated = plan.caches[layer].keys == "rotated"
        multiplier = plan.tables[layer].multiplier if rotated else None
        found.append(key_magnitude(key[0], model.heads[layer], multiplier))
    return np.stack([found, [np.abs(value[0]).max(axis=(1, 2)) for value in past.values]])


def key_magnitude(key: Floats, heads: Heads, multiplier: float | None) -> NDArray[np.float64]:
    """Per head the largest magnitude [H] that unrotated keys [H,N,D] are cached with.

    Keys that are rotated before, with `multiplier` on cos and sin, are bounded at every position
    by multiplier · sqrt(a² + b²) over their pairs (a, b).
    """
    import torch

    if multiplier is None:
        return np.asarray(np.abs(key).max(axis=(1, 2)), np.float64)
    pairs = heads.pairs(torch.from_numpy(key))
    turning, rest = pairs.split([heads.count, pairs.shape[-1] - heads.count], dim=-1)
    parts = [turning.abs() * multiplier, torch.view_as_real(rest).abs().flatten(-2)]
    return np.asarray(torch.cat(parts, dim=-1).amax(dim=(1, 2)).numpy(), np.float64)


def calibration_tokens(checkpoint: Checkpoint, text: Path | None) -> Ints:
    """Token ids [N] of the file `text`, of the default text, or random ones.

    Raises UserError where the text cannot be read, is too short or there is no tokenizer for it.
    """
    from ctx_export.runtime.text import TextCodec, has_tokenizer
    from ctx_export.validate.memory import parameters
    from ctx_export.validate.positions import default_budget

    most = min(MOST_TOKENS, default_budget(parameters(checkpoint)))
    spec, directory = checkpoint.spec, checkpoint.directory
    if not has_tokenizer(directory):
        if text is not None:
            raise UserError(
                f"calibration {text} cannot be read by {directory}, which has no tokenizer.json: "
                "add it, or leave --calibration out (random tokens are used then)"
            )
        return np.random.default_rng(_TOKEN_SEED).integers(0, spec.vocab, most, dtype=np.int64)
    path = text or DEFAULT_TEXT
    try:
        with path.open(encoding="utf-8") as file:
            content = file.read(most * _MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"calibration {path} cannot be read as text: {error}") from None
    tokens = TextCodec.load(directory, spec.bos_token_id).encode(content)[:most]
    if len(tokens) < _LEAST_TOKENS:
        raise UserError(
            f"calibration {path} has {len(tokens)} tokens: give a text of at least "
            f"{_LEAST_TOKENS}, better some hundreds"
        )
    return np.asarray(tokens, np.int64)


def _source(checkpoint: Checkpoint, text: Path | None) -> str:
    """What the tokens are, in words; warns where a better text is wanting."""
    from ctx_export.runtime.text import has_tokenizer

    if text is not None:
        return f"tokens of {text.name}"
    if has_tokenizer(checkpoint.directory):
        return "tokens of a built-in text"
    _LOG.warning(
        "%s has no tokenizer.json: the cache's scales are chosen on random tokens, which a model "
        "answers unlike text; add the tokenizer for scales of a text",
        checkpoint.directory,
    )
    return "random tokens"


def _table(plan: Plan, own: FrequencyTable) -> Table:
    if plan.length_table is not None and own is plan.table:
        return plan.length_table.at
    inv_freq = own.inv_freq.astype(np.float32).astype(np.float64)
    return lambda length: (inv_freq, own.multiplier)


def _pieces(tokens: Ints, longest: int) -> Iterator[Ints]:
    """`tokens` in texts that a model trained on `longest` tokens knows."""
    for start in range(0, len(tokens), longest):
        yield tokens[start : start + longest]


def _scales(largest: NDArray[np.float64], kind: CacheType) -> tuple[LayerScales, ...]:
    """Scales of magnitudes [2,layers,Hkv]; 1 where a head has none."""
    if not np.isfinite(largest).all():
        raise UserError(
            "the model's keys or values have NaN or Inf on the calibration text: its weights are "
            "damaged; a cache of its own precision would hold them too"
        )
    scales = (largest * kind.margin / kind.largest).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1
    return tuple(
        LayerScales(key=tuple(map(float, key)), value=tuple(map(float, value)))
        for key, value in zip(*scales, strict=True)
    )
