"""Function body of SelfExtendAttention: near keys at their positions, others by group."""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.ops.attention_steps import AttentionSteps
from ctx_export.ops.far import FarVariant
from ctx_export.ops.spec import SELF_EXTEND_ATTENTION


def self_extend_attention(variant: FarVariant) -> ir.Function:
    """The portable body for `variant`; see `ops.spec` for the shapes."""
    return _SelfExtend(SELF_EXTEND_ATTENTION, variant).function()


class _SelfExtend(AttentionSteps):
    def attend(self, key: ir.Value, value: ir.Value, mask: ir.Value) -> ir.Value:
        """Logits of all slots by group, and over them those of the slots that are near for some
        row."""
        body, q = self.body, self.values["q"]
        group, neighbor = body.attribute("group"), body.attribute("neighbor")
        zero, one = body.constant(0), body.constant(1)
        slots = self.counted(self.used)
        shift = body.op("Sub", neighbor, body.op("Div", neighbor, group))
        grouped_q = self.turned(q, body.op("Add", body.op("Div", self.token, group), shift))
        groups = body.op("Add", body.op("Div", self.used, group), one)
        table = self.rows_of(self.run(zero, one, groups), body.op("Div", slots, group))
        logits = self.logits(grouped_q, self.turned_by(key, table))

        # The first row's near tokens begin neighbor - 1 before it.
        start = body.op("Sub", self.least(self.values["seen"]), neighbor)
        start = self.slot_within(body.op("Add", start, one))
        table = self.run(start, one, body.op("Sub", self.used, start))
        near_key = self.turned_by(self.cut(key, start, None), table)
        own = self.logits(self.turned(q, self.token), near_key)
        near = self.cut(slots, start, None, axis=0)
        row = body.op("Unsqueeze", self.token, body.constant([2]))
        met = body.op("Less", body.op("Sub", row, near), neighbor)
        logits = self.capped_logits(self.overlaid(logits, own, met, start))
        return self.weighted(self.softmax(body.op("Add", logits, mask)), value, q)
