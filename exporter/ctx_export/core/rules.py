"""Parameters of the attention rules that reach behind a window, and where their tokens lie.

FORMULAS section 3 defines the rules. A slot is an index into a layer's cache [B,Hkv,C,D].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfExtend:
    """self-extend: distances below `neighbor` as they are, others in groups of `group` tokens."""

    group: int
    neighbor: int

    def describe(self) -> str:
        return f"in groups of {self.group} from distance {self.neighbor} on"


@dataclass(frozen=True, slots=True, kw_only=True)
class DualChunk:
    """dual-chunk: positions count up within chunks of `chunk` tokens and stay below `reach`."""

    chunk: int
    reach: int

    def describe(self) -> str:
        return f"chunks of {self.chunk}, positions below {self.reach}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """memory: the newest `memory` of the evicted blocks of `block` tokens, averaged."""

    memory: int
    block: int
    memory_slots: int

    def describe(self) -> str:
        return f"{self.memory} memory tokens of {self.block} tokens each"

    def capacity(self, sinks: int, window: int, max_chunk: int) -> int:
        """Slots of a sequence's cache for calls of up to `max_chunk` tokens."""
        return sinks + self.memory_slots + window + self.block - 1 + max_chunk - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Landmark:
    """landmark: per query the `topk` best of the blocks of `block` tokens behind the window.

    `token` is the id that the session inserts as every block's last token, for checkpoints that
    were trained with landmark tokens; None: the mean of a block's keys represents it.
    """

    block: int
    topk: int
    shared: bool
    token: int | None

    def describe(self) -> str:
        who = "KV head" if self.shared else "head"
        ends = f" that token {self.token} ends" if self.token is not None else ""
        return f"the {self.topk} best blocks of {self.block} tokens{ends} per {who}"

    def fed(self, sinks: int, tokens: int) -> int:
        """How many tokens a text of `tokens` is to the model: with landmark tokens one more after
        every block - 1."""
        if self.token is None:
            return tokens
        return tokens + max(0, tokens - sinks) // (self.block - 1)

    def slots(self, sinks: int, tokens: int) -> int:
        """Slots that the model's first `tokens` tokens may use, whole blocks at a time."""
        if self.token is not None or tokens <= sinks:
            return tokens
        return sinks + -(-(tokens - sinks) // self.block) * (self.block + 1)


Rule = SelfExtend | DualChunk | Memory | Landmark

RULES: dict[str, type[Rule]] = {
    "self-extend": SelfExtend,
    "dual-chunk": DualChunk,
    "memory": Memory,
    "landmark": Landmark,
}


def rule_of_json(name: str, values: Mapping[str, Any] | None) -> Rule | None:
    """The parameters of the rule called `name` from their JSON values; None for other rules.

    Raises TypeError where the values are not those of that rule.
    """
    if name not in RULES:
        if values is not None:
            raise TypeError(f"rule {name} has no parameters")
        return None
    return RULES[name](**(values or {}))
