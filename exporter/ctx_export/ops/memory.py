"""Function body of MemoryAttention: blocks that leave the window are averaged, then the rows are
written; sinks, memory and tokens are met at their rank in that order.

With P blocks evicted before query i and nb of them visible, all keys between a query and a key
count, so that the differences of ranks are those of: sink j at j from nb + i - P·block, block m at
m from i - sinks - P·block + P, token t at t from i.
"""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.ops.attention_steps import AttentionSteps
from ctx_export.ops.far import FarVariant
from ctx_export.ops.spec import MEMORY_ATTENTION


def memory_attention(variant: FarVariant) -> ir.Function:
    """The portable body for `variant`; see `ops.spec` for the shapes."""
    return _Memory(MEMORY_ATTENTION, variant).function()


class _Memory(AttentionSteps):
    def fits(self) -> ir.Value | None:
        return None

    def write(self) -> tuple[ir.Value, ir.Value]:
        """Rows and means have slots of their own; S rows make ⌈S/block⌉ means at most."""
        body = self.body
        self.sinks, self.block = body.attribute("sinks"), body.attribute("block")
        self.memory_slots = body.attribute("memory_slots")
        self.fixed = body.op("Add", self.sinks, self.memory_slots)
        self.ring = body.op("Sub", self.capacity, self.fixed)
        one, values = body.constant(1), self.values
        first = self._evicted(body.op("Sub", self.seen, one))
        self.evicted = self._evicted(body.op("Sub", self.column(self.total), one))

        most = body.op("Add", self.rows, body.op("Sub", self.block, one))
        count = body.op("Div", most, self.block)
        number = body.op("Add", first, self.counted(count))  # [B,R]
        done = body.op("Less", number, self.evicted)
        place = body.op("Add", self.sinks, body.op("Mod", number, self.memory_slots))

        start = body.op("Add", self.sinks, body.op("Mul", first, self.block))
        tokens = body.op("Add", start, self.counted(body.op("Mul", count, self.block)))
        averaged = [
            body.op(
                "Concat",
                rows,
                self.means(past, rows, start, self.block, self._ring_slot(tokens)),
                axis=2,
            )
            for past, rows in (
                (values["past_key"], values["k"]),
                (values["past_value"], values["v"]),
            )
        ]
        sink = body.op("Less", self.token, self.sinks)
        slots = body.op("Where", sink, self.token, self._ring_slot(self.token))
        slots = body.op("Concat", slots, place, axis=1)
        keep = body.op("Concat", self.written, done, axis=1)
        return self.written_rows(slots, averaged[0], averaged[1], keep)

    def _evicted(self, token: ir.Value) -> ir.Value:
        """How many blocks are means for the query at `token`."""
        body = self.body
        behind = body.op("Sub", body.op("Add", token, body.constant(1)), self.sinks)
        behind = body.op("Sub", behind, body.attribute("window"))
        return body.op("Div", body.op("Max", behind, body.constant(0)), self.block)

    def _ring_slot(self, tokens: ir.Value) -> ir.Value:
        """Slots of tokens after the sinks."""
        body = self.body
        after = body.op("Mod", body.op("Sub", tokens, self.sinks), self.ring)
        return body.op("Add", self.fixed, after)

    def attended(self, key: ir.Value, value: ir.Value) -> ir.Value:
        body, total = self.body, self.most(self.total)
        beyond = body.op("Greater", total, self.sinks)
        used = body.op("Where", beyond, body.op("Add", total, self.memory_slots), total)
        return self.narrowed(used, key, value)

    def mask(self) -> ir.Value:
        body = self.body
        slot = body.op("Unsqueeze", self.counted(self.used), body.constant([0]))
        is_sink, is_fixed = body.op("Less", slot, self.sinks), body.op("Less", slot, self.fixed)
        newest = body.op("Sub", self.evicted, body.constant(1))
        number = self._newest(newest, body.op("Sub", slot, self.sinks), self.memory_slots)
        newest = body.op(
            "Sub", self.column(self.total), body.op("Add", self.sinks, body.constant(1))
        )
        after = self._newest(newest, body.op("Sub", slot, self.fixed), self.ring)
        token = body.op("Add", self.sinks, after)
        position = body.op("Where", is_sink, slot, body.op("Where", is_fixed, number, token))
        self.key_position = body.op("Max", position, body.constant(0))

        row = body.op("Unsqueeze", self.token, body.constant([2]))
        self.row_evicted = self._evicted(self.token)
        evicted = body.op("Unsqueeze", self.row_evicted, body.constant([2]))
        number, token, after = (
            body.op("Unsqueeze", part, body.constant([1])) for part in (number, token, after)
        )
        zero = body.constant(0)
        oldest = body.op("Max", body.op("Sub", evicted, body.attribute("memory")), zero)
        in_memory = self._between(number, oldest, evicted)
        held = body.op("GreaterOrEqual", after, body.op("Mul", evicted, self.block))
        in_ring = body.op("And", held, body.op("LessOrEqual", token, row))
        past_sinks = self._either(is_fixed, in_memory, in_ring)
        in_sinks = body.op("LessOrEqual", slot, row)
        return self.additive(self._either(is_sink, in_sinks, past_sinks))

    def _either(self, condition: ir.Value, then: ir.Value, otherwise: ir.Value) -> ir.Value:
        """Where of booleans, which onnxruntime has for numbers only."""
        body = self.body
        return body.op(
            "Or",
            body.op("And", condition, then),
            body.op("And", body.op("Not", condition), otherwise),
        )

    def _newest(self, newest: ir.Value, place: ir.Value, count: ir.Value) -> ir.Value:
        """The largest number ≤ `newest` that is `place` modulo `count`; below 0: none yet."""
        body = self.body
        return body.op("Sub", newest, body.op("Mod", body.op("Sub", newest, place), count))

    def _between(self, x: ir.Value, first: ir.Value, end: ir.Value) -> ir.Value:
        body = self.body
        return body.op("And", body.op("GreaterOrEqual", x, first), body.op("Less", x, end))

    def attend(self, key: ir.Value, value: ir.Value, mask: ir.Value) -> ir.Value:
        body, q, evicted = self.body, self.values["q"], self.row_evicted
        key = self.turned(key, self.key_position)
        behind = body.op("Sub", self.token, body.op("Mul", evicted, self.block))
        visible = body.op("Min", evicted, body.attribute("memory"))
        from_sinks = body.op("Add", behind, visible)
        from_memory = body.op("Add", body.op("Sub", behind, self.sinks), evicted)
        parts = [
            self.logits(self.turned(q, positions), self.cut(key, start, end))
            for positions, start, end in (
                (from_sinks, None, self.sinks),
                (from_memory, self.sinks, self.fixed),
                (self.token, self.fixed, None),
            )
        ]
        logits = self.capped_logits(body.op("Concat", *parts, axis=4))
        return self.weighted(self.softmax(body.op("Add", logits, mask)), value, q)
