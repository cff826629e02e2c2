"""Landmark tokens: what a model that was trained with them is fed between the tokens of a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.rules import Landmark
from ctx_export.runtime.backend import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkTokens:
    """Token `token` follows every `block` - 1 tokens after the first `sinks`.

    It is fed together with the last of them, and the logits after that one are the landmark's:
    trained models predict the next word there (arXiv 2305.16300, section 3.1).
    """

    token: int
    block: int
    sinks: int

    @classmethod
    def of(cls, caches: Iterable[CacheInfo]) -> LandmarkTokens | None:
        """Those of a package's layers, None where it has none."""
        for cache in caches:
            rule = cache.parameters
            if isinstance(rule, Landmark) and rule.token is not None:
                return cls(token=rule.token, block=rule.block, sinks=cache.sinks)
        return None

    def fed(self, text: Ints) -> Ints:
        """Tokens that the model has had of the first `text` tokens of texts, any shape."""
        return np.asarray(text + np.maximum(text - self.sinks, 0) // (self.block - 1))

    def text(self, fed: Ints) -> Ints:
        """Inverse of `fed`."""
        return np.asarray(fed - np.maximum(fed - self.sinks, 0) // self.block)

    def spread(self, ids: Ints, counts: Ints, seen: Ints) -> tuple[Ints, Ints, Ints]:
        """What to feed for `counts` [B] of the tokens `ids` [B,N] after `seen` [B] tokens of text:
        ids [B,W], how many of each row are fed [B], and the row of every text token's logits
        [B,N]."""
        place = seen[:, None] + np.arange(ids.shape[1] + 1)
        at = self.fed(place) - self.fed(seen)[:, None]
        fed = np.take_along_axis(at, counts[:, None], axis=1)[:, 0]
        wide = np.full((len(ids), int(fed.max(initial=0))), self.token, np.int64)
        row, column = np.nonzero(np.arange(ids.shape[1]) < counts[:, None])
        wide[row, at[row, column]] = ids[row, column]
        return wide, fed, at[:, 1:] - 1


def fed_tokens(landmarks: LandmarkTokens, text: int) -> int:
    """`landmarks.fed` of one number."""
    return int(landmarks.fed(np.array(text)))
