"""What is measured of every family: a package's error against PyTorch under four methods.

Oracles: transformers' own, unmodified model under the method's rope_parameters, one forward at
batch 1; for streaming, which transformers does not have, the pairwise reference. A family's tokens
are as many as its name draws, beyond its windows and twice its trained context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from ctx_export.core.manifest import Manifest
from ctx_export.core.recipe import Recipe
from ctx_export.frontends.source import Source
from ctx_export.pipeline import export_source
from ctx_export.validate.pairwise import PairwiseReference
from ctx_export.validate.rope_tables import own_tables
from ctx_export.validate.visibility import Group, Rule
from tests.support import gptj
from tests.support.families import ORIGINAL_CONTEXT, forward, load_config, load_model
from tests.support.feeding import decode_pieces, error, fed, opened

METHODS = ("none", "yarn", "streaming", "dynamic-ntk")
TOLERANCE = 1e-4  # of the logit scale
TARGET, FACTOR, SINKS, RECENT = 256, 4.0, 3, 45
ROPE: dict[str, dict[str, Any]] = {
    "none": {"rope_type": "default"},
    "yarn": {
        "rope_type": "yarn",
        "factor": FACTOR,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    },
    "dynamic-ntk": {"rope_type": "dynamic", "factor": FACTOR},
}


@dataclass
class Oracle:
    """The PyTorch model of a checkpoint, its tokens and its logits [N,V] under each method."""

    name: str
    checkpoint: Path
    dtype: str = "float32"
    held: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def ids(self) -> np.ndarray:
        random = np.random.default_rng(crc32(self.name.encode()))
        vocab = load_config(self.checkpoint).vocab_size
        return random.integers(0, vocab, random.integers(150, 220))

    @property
    def is_gptj(self) -> bool:
        return load_config(self.checkpoint).model_type == "gptj"

    def logits(self, method: str) -> np.ndarray:
        """Under a method that changes frequencies alone."""
        if method not in self.held:
            self.held[method] = forward(self._model(method), self.ids)
        return self.held[method]

    def streamed(self, manifest: Manifest) -> np.ndarray:
        """Over the caches that a package states, every pair of tokens by itself."""
        main = np.asarray(manifest.scaling["inv_freq"]), float(manifest.scaling["multiplier"])
        tables = [own or main for own in own_tables(manifest)]
        reference = PairwiseReference(
            self.checkpoint,
            [by_cache_slot(cache.sinks, cache.window) for cache in manifest.layers],
            [lambda length, table=table: table for table in tables],
        )
        return reference.logits(self.ids)

    def _model(self, method: str) -> Any:
        if self.is_gptj:
            return gptj.model(self.checkpoint, ROPE[method], TARGET, len(self.ids))
        rope = rope_parameters(load_config(self.checkpoint).rope_parameters, method)
        return load_model(self.checkpoint, load_config(self.checkpoint, rope), self.dtype)


def rope_parameters(own: dict[str, Any], method: str) -> dict[str, Any]:
    """transformers' settings for a method, over what a config says of base and rotated share; of
    the layers that see every token where there are kinds of layers."""
    if "full_attention" in own:
        return {**own, "full_attention": rope_parameters(own["full_attention"], method)}
    if own["rope_type"] == ROPE[method]["rope_type"]:
        return {**own, **ROPE[method]}
    kept = {key: own[key] for key in ("rope_theta", "partial_rotary_factor") if key in own}
    return {**kept, **ROPE[method]}


def by_cache_slot(sinks: int, window: int) -> Rule:
    """Positions of the tokens held are the slots of a cache of sinks and window."""

    def groups(query: int) -> tuple[Group, ...]:
        recent = np.arange(max(sinks, query - window + 1), query + 1)
        held = np.concatenate([np.arange(min(sinks, query + 1)), recent])
        slots = np.arange(len(held))
        return (Group(keys=held, positions=slots, query_position=len(held) - 1),)

    return groups


def package(source: Source, recipe: Recipe, method: str, output: Path) -> Path:
    """`source`, read by `recipe`, under a method at four times the trained context."""
    options: dict[str, Any] = {"target": TARGET}
    if method == "streaming":
        options = {"sinks": SINKS, "window": RECENT, "max_chunk": 16}
    wanted = Recipe(
        model=recipe.model,
        reference=recipe.reference,
        output=output,
        engine="none",
        validate=False,
        force=True,
        method=method,
        **options,
    )
    return export_source(source, wanted).output


def pieces(oracle: Oracle) -> tuple[Sequence[int], ...]:
    """Prefill in one call, decode across the trained context, and a random split."""
    count = len(oracle.ids)
    random = np.random.default_rng(count)
    cuts = [piece for piece in accumulate(random.integers(1, 48, 12).tolist()) if piece < count]
    return [], decode_pieces(count, ORIGINAL_CONTEXT), np.diff([0, *cuts]).tolist()


def measured(made: Path, oracle: Oracle, method: str) -> float:
    """The largest error of a package's logits over every split, in shares of the logit scale."""
    if method == "streaming":
        expected = oracle.streamed(Manifest.load(made))
    else:
        expected = oracle.logits(method)
    with opened(made) as session:
        return max(error(fed(session, oracle.ids, split), expected) for split in pieces(oracle))
