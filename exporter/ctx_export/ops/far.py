"""What the bodies of the attentions that look behind a window are made for."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.ops.attention_steps import check_optional
from ctx_export.ops.spec import SELF_EXTEND_ATTENTION, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class FarVariant:
    """What one model's sites of such an attention need."""

    optional: tuple[str, ...] = ()
    softcap: bool = False  # some site caps its logits
    layout: Layout = Layout.HEAD_MAJOR  # of all sites' q, k, v and y

    def __post_init__(self) -> None:
        check_optional(self.optional, SELF_EXTEND_ATTENTION.optional)
        if len({"inv_freq", "multiplier"} & set(self.optional)) == 1:
            raise ValueError(
                f"optional inputs {self.optional}: inv_freq and multiplier come together"
            )
