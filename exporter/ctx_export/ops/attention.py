"""Function body of SinkWindowAttention: rotate and write the new rows, then attend over
`present`."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.core.cache_type import FLOAT8, CacheType
from ctx_export.ops.attention_steps import FAR, AttentionSteps, check_optional
from ctx_export.ops.builder import FLOAT, FLOAT8E4M3FN, INT8
from ctx_export.ops.rotary import turned
from ctx_export.ops.spec import SINK_WINDOW_ATTENTION, Layout, Rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionVariant:
    """What one model's attention sites need; a body may not mention an input that is absent."""

    optional: tuple[str, ...] = ()
    bounded: bool = False  # some site's cache is a ring
    softcap: bool = False  # some site caps its logits
    rotation: Rotation = Rotation.KEYS_ON_READ  # of all sites
    sink_position: bool = False  # some site's sinks meet a second rotation of q
    layout: Layout = Layout.HEAD_MAJOR  # of all sites' q, k, v and y
    cache_type: CacheType | None = None  # of the sites' caches, None: q's own

    def __post_init__(self) -> None:
        check_optional(self.optional, SINK_WINDOW_ATTENTION.optional)
        if self.rotation and ("sink_q" in self.optional or "inv_freq" not in self.optional):
            raise ValueError(
                f"optional inputs {self.optional} with rotation {self.rotation}: q is rotated "
                "here, so give inv_freq and multiplier and no sink_q"
            )
        if self.sink_position and not self.rotation:
            raise ValueError(f"a sink position with rotation {self.rotation}: give sink_q instead")
        if self.layout and "sink_q" in self.optional:
            raise ValueError(
                f"optional inputs {self.optional} with layout {self.layout}: a sink_q is given by "
                "head only, so let the attention rotate q instead"
            )
        scaled = {"key_scale", "value_scale"} & set(self.optional)
        if len(scaled) != (2 if self.cache_type is not None else 0):
            raise ValueError(
                f"optional inputs {self.optional} do not go with caches of type "
                f"{self.cache_type}: both scales are given with a quantised type, else neither"
            )

    @property
    def keys_on_read(self) -> bool:
        """Whether cached keys are unrotated."""
        return "inv_freq" in self.optional and self.rotation != Rotation.ON_WRITE


def sink_window_attention(variant: AttentionVariant) -> ir.Function:
    """The portable body for `variant`; see `ops.spec` for the shapes."""
    return _SinkWindow(variant).function()


class _SinkWindow(AttentionSteps):
    def __init__(self, variant: AttentionVariant) -> None:
        super().__init__(SINK_WINDOW_ATTENTION, variant)
        self.variant = variant

    def fits(self) -> ir.Value | None:
        body, fits = self.body, super().fits()
        if not self.variant.bounded:
            return fits
        ring = body.op("Equal", body.attribute("bounded"), body.constant(1))
        return body.op("Or", fits, ring)

    def write(self) -> tuple[ir.Value, ir.Value]:
        """ONNX cannot index float8: those caches are written and read as float32."""
        body = self.body
        self.sinks = body.attribute("sinks")
        if self.variant.rotation:
            self._rotate()
        index, presents = self.slot_index(self._slots()), []
        for name, part in (("key", "k"), ("value", "v")):
            past = self.values[f"past_{name}"]
            if self.variant.cache_type is FLOAT8:
                past = body.cast(past, FLOAT)
            rows = self._stored(self.values[part], f"{name}_scale")
            presents.append(self.scattered(past, index, rows, self.written))
        return presents[0], presents[1]

    def kept(self, present: ir.Value) -> ir.Value:
        if self.variant.cache_type is FLOAT8:
            return self.body.cast(present, FLOAT8E4M3FN)
        return present

    def _rotate(self) -> None:
        """q, k and the q that meets the sinks, rotated and rounded to their type."""
        values, q = self.values, self.values["q"]
        table = self.table(self.token)
        values["q"] = self._turned(q, table)
        if self.variant.rotation == Rotation.ON_WRITE:
            values["k"] = self._turned(values["k"], table)
        if self.variant.sink_position:
            body = self.body
            limit = body.attribute("sink_position")
            none = body.op("Equal", limit, body.constant(0))
            limit = body.op("Where", none, body.constant(FAR), limit)
            values["sink_q"] = self._turned(q, self.table(body.op("Min", self.token, limit)))

    def _turned(self, x: ir.Value, table: tuple[ir.Value, ir.Value]) -> ir.Value:
        return self.body.op("CastLike", turned(self.body, x, table), x)

    def _slots(self) -> ir.Value:
        """Slot of every row [B,S]. Rows that are no tokens land on slots no token of this call
        has: S consecutive tokens have S different slots while S ≤ C - sinks."""
        body = self.body
        past_sinks = body.op("Sub", self.token, self.sinks)
        wrapped = body.op("Add", self.sinks, body.op("Mod", past_sinks, self._ring()))
        return body.op("Where", body.op("Less", self.token, self.sinks), self.token, wrapped)

    def _ring(self) -> ir.Value:
        body = self.body
        return body.op("Max", body.op("Sub", self.capacity, self.sinks), body.constant(1))

    def _stored(self, rows: ir.Value, scale: str) -> ir.Value:
        """What the cache keeps of rows [B,H,S,D]: themselves, or numbers of its type."""
        body, kind = self.body, self.variant.cache_type
        if kind is None:
            return rows
        column = body.op("Unsqueeze", self.values[scale], body.constant([1, 2]))
        scaled = body.op("Div", body.cast(rows, FLOAT), column)
        if kind is FLOAT8:
            return body.cast(body.op("Cast", scaled, to=FLOAT8E4M3FN, saturate=1), FLOAT)
        largest = body.cast(body.constant(kind.largest, float), FLOAT)
        return body.cast(
            body.op("Clip", body.op("Round", scaled), body.op("Neg", largest), largest), INT8
        )

    def attended(self, key: ir.Value, value: ir.Value) -> ir.Value:
        return self.narrowed(self.most(self.total), key, value)

    def _slot_tokens(self) -> ir.Value:
        """Newest token of every slot read, [1|B,U]; -1 or past the end where it is empty."""
        body = self.body
        slot = body.op("Unsqueeze", self.counted(self.used), body.constant([0]))
        if not self.variant.bounded:
            return slot
        full = body.op("Equal", body.attribute("bounded"), body.constant(0))
        ring = body.op("Where", full, body.constant(FAR), self._ring())
        last = body.op("Sub", self.column(self.total), body.constant(1))
        behind = body.op("Sub", last, slot)
        # Floor division: the remainder takes the divisor's sign in ONNX's integer Mod.
        lap = body.op("Sub", behind, body.op("Mod", behind, ring))
        newest = body.op(
            "Where", body.op("Less", slot, self.sinks), slot, body.op("Add", slot, lap)
        )
        empty = body.op("Less", behind, body.constant(0))
        return body.op("Where", empty, body.constant(-1), newest)

    def mask(self) -> ir.Value:
        body = self.body
        slot_token = body.op("Unsqueeze", self._slot_tokens(), body.constant([1]))
        row_token = body.op("Unsqueeze", self.token, body.constant([2]))
        window = body.attribute("window")
        unlimited = body.op("Equal", window, body.constant(0))
        window = body.op("Where", unlimited, body.constant(FAR), window)
        distance = body.op("Sub", row_token, slot_token)
        near = body.op("Less", distance, window)
        sink = body.op("Less", slot_token, self.sinks)
        past = body.op("GreaterOrEqual", distance, body.constant(0))
        held = body.op("GreaterOrEqual", slot_token, body.constant(0))
        visible = body.op("And", body.op("And", past, held), body.op("Or", near, sink))
        self.sink_slot = body.op("Unsqueeze", sink, body.constant([1, 2]))
        return self.additive(visible)

    def attend(self, key: ir.Value, value: ir.Value, mask: ir.Value) -> ir.Value:
        body, values, variant = self.body, self.values, self.variant
        key, value = self._read(key, "key_scale"), self._read(value, "value_scale")
        if variant.keys_on_read:
            zeros = body.op("Mul", self.seen, body.constant(0))  # a row for every sequence
            positions = body.op("Max", self._slot_tokens(), zeros)
            key = turned(body, key, self.table(positions))
        if variant.keys_on_read or variant.cache_type is not None:
            key = body.op("CastLike", key, values["q"])
        if variant.cache_type is not None:
            value = body.op("CastLike", value, values["q"])
        logits = self.logits(values["q"], key)
        if "sink_q" in values:
            sink_logits = self.logits(values["sink_q"], key)
            logits = body.op("Where", self.sink_slot, sink_logits, logits)
        weights = self.softmax(body.op("Add", self.capped_logits(logits), mask))
        return self.weighted(weights, value, values["q"])

    def _read(self, elements: ir.Value, scale: str) -> ir.Value:
        """Elements of a cache [B,H,U,D] as keys or values, those of a quantised one in float32."""
        body = self.body
        if self.variant.cache_type is None:
            return elements
        column = body.op("Unsqueeze", self.values[scale], body.constant([1, 2]))
        return body.op("Mul", body.cast(elements, FLOAT), column)
