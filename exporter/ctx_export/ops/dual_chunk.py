"""Function body of DualChunkAttention: keys at their place in a chunk, queries at one of three."""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.ops.attention_steps import AttentionSteps
from ctx_export.ops.far import FarVariant
from ctx_export.ops.spec import DUAL_CHUNK_ATTENTION


def dual_chunk_attention(variant: FarVariant) -> ir.Function:
    """The portable body for `variant`; see `ops.spec` for the shapes."""
    return _DualChunk(DUAL_CHUNK_ATTENTION, variant).function()


class _DualChunk(AttentionSteps):
    def attend(self, key: ir.Value, value: ir.Value, mask: ir.Value) -> ir.Value:
        """Logits of all slots as of earlier chunks, and over them those of the slots that are in
        the previous chunk, then in the same chunk of some row."""
        body, q = self.body, self.values["q"]
        chunk = body.attribute("chunk")
        last = body.op("Sub", body.attribute("reach"), body.constant(1))
        slots = self.counted(self.used)
        table = self.run(body.constant(0), body.constant(1), body.op("Min", chunk, self.used))
        key = self.turned_by(key, self.rows_of(table, body.op("Mod", slots, chunk)))
        at = body.op("Mod", self.token, chunk)
        anywhere = body.op("Unsqueeze", last, body.constant([0, 1]))
        logits = self.logits(self.turned(q, anywhere), key)

        row_chunk = body.op("Unsqueeze", body.op("Div", self.token, chunk), body.constant([2]))
        first = body.op("Div", self.least(self.values["seen"]), chunk)
        previous = body.op("Min", body.op("Add", at, chunk), last)
        for back, positions in ((1, previous), (0, at)):
            start = body.op("Mul", body.op("Sub", first, body.constant(back)), chunk)
            start = self.slot_within(start)
            own = self.logits(self.turned(q, positions), self.cut(key, start, None))
            key_chunk = body.op("Div", self.cut(slots, start, None, axis=0), chunk)
            behind = body.op("Sub", row_chunk, key_chunk)
            met = body.op("LessOrEqual", behind, body.constant(back))
            logits = self.overlaid(logits, own, met, start)
        logits = self.capped_logits(logits)
        return self.weighted(self.softmax(body.op("Add", logits, mask)), value, q)
