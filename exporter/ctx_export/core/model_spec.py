"""Facts about a decoder that the later stages need, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.core.errors import UserError
from ctx_export.core.rope_settings import RopeSettings
from ctx_export.scaling.base import RotaryShape

PRECISIONS = ("fp32", "fp16", "bf16")
UNKNOWN_FAMILY = "onnx"  # of an ONNX file that nothing but its graph describes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder's shape. `windows[i]` is layer i's own sliding window in tokens, 0 for none;
    `ropes[i]` its own position settings, where layers differ. A recipe's method replaces `rope`,
    those of the layers that see farthest."""

    family: str  # the config's model_type
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    hidden: int
    max_position_embeddings: int
    precision: str  # the checkpoint's own, one of PRECISIONS
    rope: RopeSettings
    windows: tuple[int, ...]
    ropes: tuple[RopeSettings, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "kv_heads", "head_dim", "vocab", "hidden"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} query heads do not divide over {self.kv_heads} KV heads"
            )

    def rope_of(self, layer: int) -> RopeSettings:
        """Position settings of a layer."""
        return self.ropes[layer] if self.ropes else self.rope

    @property
    def original_context(self) -> int:
        """Trained context L: the rope settings' own where they state one."""
        return self.rope.original_context or self.max_position_embeddings

    def rotary_shape(
        self, original_context: int | None = None, rope: RopeSettings | None = None
    ) -> RotaryShape:
        """The rotation that layers of the settings `rope` (default: the main ones) were trained
        with; `original_context` overrides the config's."""
        rope = rope or self.rope
        own = rope.original_context or self.max_position_embeddings
        return RotaryShape(
            head_dim=self.head_dim,
            rotary_dim=int(self.head_dim * rope.partial_rotary_factor),
            theta=rope.theta,
            original_context=original_context or own,
            max_position_embeddings=self.max_position_embeddings,
        )
