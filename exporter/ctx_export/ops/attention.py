"""Function body of SinkWindowAttention: rotate and write the new rows, then attend over `present`.

Reads go through `present` only, so that data flow alone orders them after the write when a
runtime lets present share memory with past.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.core.cache_type import FLOAT8, CacheType
from ctx_export.ops.builder import FLOAT, FLOAT8E4M3FN, INT8, BodyBuilder
from ctx_export.ops.rotary import rotary_table, turned
from ctx_export.ops.spec import DOMAIN, SINK_WINDOW_ATTENTION, Layout, Rotation

_FAR = 1 << 62  # farther than any token
_COPY_SHARE = 16  # rows of attention over one slot that cost as much as copying it, measured
_MASKED = -3.0e38  # finite, so that a row without visible keys stays finite until it is zeroed


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
        known = SINK_WINDOW_ATTENTION.optional
        if list(self.optional) != [name for name in known if name in self.optional]:
            raise ValueError(
                f"optional inputs {self.optional} are not an ordered subset of {known}"
            )
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
    spec = SINK_WINDOW_ATTENTION
    return _Attention(variant).function(spec.inputs + variant.optional)


class _Attention:
    """State shared by the steps of one body: the builder and the call's position arithmetic."""

    def __init__(self, variant: AttentionVariant) -> None:
        self.variant = variant

    def function(self, inputs: Sequence[str]) -> ir.Function:
        self.body = body = BodyBuilder(inputs)
        self.values = dict(body.inputs)
        if self.variant.layout:
            self._split_heads()
        self._positions()
        if self.variant.rotation:
            self._rotate()
        self.index = self._scatter_index(self.values["k"])
        self.keep = body.op("Unsqueeze", self.written, body.constant([1, 3]))
        key = self._write("past_key", self._stored(self.values["k"], "key_scale"))
        value = self._write("past_value", self._stored(self.values["v"], "value_scale"))
        self._span()
        mask = self._mask()
        y = body.choose(
            self.narrow,
            lambda: self._attend(self._sliced(key), self._sliced(value), mask),
            lambda: self._attend(key, value, mask),
        )
        y = self._padded(y)
        if self.variant.layout:
            y = self._joined_heads(y)
        outputs = [y, self._kept(key), self._kept(value)]
        spec = SINK_WINDOW_ATTENTION
        return body.function(spec.name, DOMAIN, outputs, spec.attributes)

    def _split_heads(self) -> None:
        """q, k and v as [B,H,S,D]; of a packed one the first heads are q's, the last v's."""
        body, values = self.body, self.values
        dim = body.op("Shape", values["past_key"], start=3, end=4)
        if self.variant.layout == Layout.TOKEN_MAJOR:
            for name in ("q", "k", "v"):
                values[name] = self._by_head(values[name], dim)
            return
        packed = self._by_head(values["q"], dim)
        kv_heads = body.op("Shape", values["past_key"], start=1, end=2)
        values_from = body.op("Neg", kv_heads)
        keys_from = body.op("Mul", kv_heads, body.constant([-2]))
        zero, end, axis = body.constant([0]), body.constant([_FAR]), body.constant([1])
        for name, first, last in (
            ("q", zero, keys_from),
            ("k", keys_from, values_from),
            ("v", values_from, end),
        ):
            values[name] = body.op("Slice", packed, first, last, axis)

    def _by_head(self, x: ir.Value, dim: ir.Value) -> ir.Value:
        """x [B,S,H·D] as [B,H,S,D]."""
        body = self.body
        heads = body.op("Div", body.op("Shape", x, start=2, end=3), dim)
        shape = body.op("Concat", body.constant([0, 0]), heads, dim, axis=0)
        return body.op("Transpose", body.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def _joined_heads(self, y: ir.Value) -> ir.Value:
        """y [B,H,S,D] as [B,S,H·D]."""
        body = self.body
        dim = body.op("Shape", self.values["past_key"], start=3, end=4)
        width = body.op("Mul", body.op("Shape", y, start=1, end=2), dim)
        shape = body.op("Concat", body.constant([0, 0]), width, axis=0)
        return body.op("Reshape", body.op("Transpose", y, perm=[0, 2, 1, 3]), shape)

    def _positions(self) -> None:
        """Token of every row [B,S], which rows are tokens, and the slots in use."""
        body, values = self.body, self.values
        rows = body.dimension(values["q"], 2)
        index = body.op("Range", body.constant(0), rows, body.constant(1))
        seen = body.op("Unsqueeze", values["seen"], body.constant([1]))
        new = body.op("Unsqueeze", values["new"], body.constant([1]))
        self.token = body.op("Add", seen, index)
        self.is_token = body.op("Less", body.op("Unsqueeze", index, body.constant([0])), new)
        self.total = body.op("Add", values["seen"], values["new"])
        self.sinks = body.attribute("sinks")
        self.capacity = body.dimension(values["past_key"], 2)
        # A full cache's row past the last slot is not written and gives NaN.
        fits = body.op("Less", self.token, self.capacity)
        if self.variant.bounded:
            ring = body.op("Equal", body.attribute("bounded"), body.constant(1))
            fits = body.op("Or", fits, ring)
        self.overflow = body.op("And", self.is_token, body.op("Not", fits))
        self.written = body.op("And", self.is_token, fits)

    def _rotate(self) -> None:
        """q, k and the q that meets the sinks, rotated and rounded to their type."""
        values, q = self.values, self.values["q"]
        table = self._table(self.token)
        values["q"] = self._turned(q, table)
        if self.variant.rotation == Rotation.ON_WRITE:
            values["k"] = self._turned(values["k"], table)
        if self.variant.sink_position:
            body = self.body
            limit = body.attribute("sink_position")
            none = body.op("Equal", limit, body.constant(0))
            limit = body.op("Where", none, body.constant(_FAR), limit)
            values["sink_q"] = self._turned(q, self._table(body.op("Min", self.token, limit)))

    def _table(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        values = self.values
        return rotary_table(self.body, positions, values["inv_freq"], values["multiplier"])

    def _turned(self, x: ir.Value, table: tuple[ir.Value, ir.Value]) -> ir.Value:
        return self.body.op("CastLike", turned(self.body, x, table), x)

    def _slots(self) -> ir.Value:
        """Slot of every row [B,S]. Rows that are no tokens land on slots no token of this call
        has: S consecutive tokens have S different slots while S ≤ C - sinks."""
        body = self.body
        ring = body.op("Max", body.op("Sub", self.capacity, self.sinks), body.constant(1))
        past_sinks = body.op("Sub", self.token, self.sinks)
        wrapped = body.op("Add", self.sinks, body.op("Mod", past_sinks, ring))
        return body.op("Where", body.op("Less", self.token, self.sinks), self.token, wrapped)

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

    def _kept(self, written: ir.Value) -> ir.Value:
        """What was written as the cache's own type."""
        if self.variant.cache_type is FLOAT8:
            return self.body.cast(written, FLOAT8E4M3FN)
        return written

    def _write(self, name: str, rows: ir.Value) -> ir.Value:
        """The past [B,H,C,D] of that name with the call's rows [B,H,S,D] in their slots; others
        keep theirs. ONNX cannot index float8: those numbers are written as float32."""
        body, past = self.body, self.values[name]
        if self.variant.cache_type is FLOAT8:
            past = body.cast(past, FLOAT)
        kept = body.op("GatherND", past, self.index)
        changed = body.op("Where", self.keep, rows, kept)
        return body.op("ScatterND", past, self.index, changed)

    def _scatter_index(self, rows: ir.Value) -> ir.Value:
        """(batch, head, slot) of every row: [B,H,S,3]."""
        body = self.body
        shape = body.op("Shape", rows, start=0, end=3)
        column = body.op("Concat", shape, body.constant([1]), axis=0)
        batch, heads = body.dimension(rows, 0), body.dimension(rows, 1)
        zero, one = body.constant(0), body.constant(1)
        parts = [
            body.op("Unsqueeze", body.op("Range", zero, batch, one), body.constant([1, 2, 3])),
            body.op("Unsqueeze", body.op("Range", zero, heads, one), body.constant([0, 2, 3])),
            body.op("Unsqueeze", self._slots(), body.constant([1, 3])),
        ]
        return body.op("Concat", *(body.op("Expand", part, column) for part in parts), axis=3)

    def _span(self) -> None:
        """How many leading slots are read: those in use where the rest is worth a copy, else all.

        A slice copies keys and values, which in a decode step costs as much as reading them;
        reading all C slots costs (C - used) / used more. With S rows the work per slot grows with
        S, the copy does not.
        """
        body = self.body
        used = body.op("Min", body.op("ReduceMax", self.total, keepdims=0), self.capacity)
        rows = body.dimension(self.values["q"], 2)
        spare = body.op("Sub", self.capacity, used)
        share = body.constant(_COPY_SHARE)
        wasted = body.op("Mul", spare, body.op("Add", rows, share))
        self.narrow = body.op("Greater", wasted, body.op("Mul", used, share))
        self.used = body.op("Where", self.narrow, used, self.capacity)

    def _sliced(self, present: ir.Value) -> ir.Value:
        body = self.body
        end = body.op("Unsqueeze", self.used, body.constant([0]))
        return body.op("Slice", present, body.constant([0]), end, body.constant([2]))

    def _slot_tokens(self) -> ir.Value:
        """Newest token of every slot read, [1|B,U]; -1 or past the end where it is empty."""
        body = self.body
        slot = body.op("Range", body.constant(0), self.used, body.constant(1))
        slot = body.op("Unsqueeze", slot, body.constant([0]))
        if not self.variant.bounded:
            return slot
        full = body.op("Equal", body.attribute("bounded"), body.constant(0))
        ring = body.op("Max", body.op("Sub", self.capacity, self.sinks), body.constant(1))
        ring = body.op("Where", full, body.constant(_FAR), ring)
        last = body.op(
            "Sub", body.op("Unsqueeze", self.total, body.constant([1])), body.constant(1)
        )
        behind = body.op("Sub", last, slot)
        # Floor division: the remainder takes the divisor's sign in ONNX's integer Mod.
        lap = body.op("Sub", behind, body.op("Mod", behind, ring))
        newest = body.op(
            "Where", body.op("Less", slot, self.sinks), slot, body.op("Add", slot, lap)
        )
        empty = body.op("Less", behind, body.constant(0))
        return body.op("Where", empty, body.constant(-1), newest)

    def _mask(self) -> ir.Value:
        """Additive mask [B,1,1,S,U] float32: 0 where a row sees a slot's token."""
        body = self.body
        slot_token = body.op("Unsqueeze", self._slot_tokens(), body.constant([1]))
        row_token = body.op("Unsqueeze", self.token, body.constant([2]))
        window = body.attribute("window")
        unlimited = body.op("Equal", window, body.constant(0))
        window = body.op("Where", unlimited, body.constant(_FAR), window)
        distance = body.op("Sub", row_token, slot_token)
        near = body.op("Less", distance, window)
        sink = body.op("Less", slot_token, self.sinks)
        past = body.op("GreaterOrEqual", distance, body.constant(0))
        held = body.op("GreaterOrEqual", slot_token, body.constant(0))
        visible = body.op("And", body.op("And", past, held), body.op("Or", near, sink))
        visible = body.op("Unsqueeze", visible, body.constant([1, 2]))
        self.sink_slot = body.op("Unsqueeze", sink, body.constant([1, 2]))
        zero, masked = body.constant(0.0, float), body.constant(_MASKED, float)
        return body.cast(body.op("Where", visible, zero, masked), FLOAT)

    def _grouped(self, heads: ir.Value) -> ir.Value:
        """[B,Hq,S,D] as [B,Hkv,G·S,D]: the query heads of one KV head share its keys."""
        kv_heads = self.body.op("Shape", self.values["k"], start=1, end=2)
        shape = [self.body.constant([0]), kv_heads, self.body.constant([-1]), self.head_dim]
        return self.body.op("Reshape", heads, self.body.op("Concat", *shape, axis=0))

    def _logits(self, q: ir.Value, transposed_key: ir.Value) -> ir.Value:
        """scale · q·k as float32 [B,Hkv,G,S,U]."""
        body = self.body
        # Scaling S·D query values is cheaper than S·U logits.
        scaled = body.op("Mul", body.cast(q, FLOAT), body.attribute("scale", "float"))
        query = self._grouped(body.op("CastLike", scaled, q))
        product = body.op("MatMul", query, transposed_key)
        shape = body.op(
            "Concat",
            body.op("Shape", self.values["k"], start=0, end=2),
            body.constant([-1]),
            body.op("Shape", self.values["q"], start=2, end=3),
            body.op("Unsqueeze", self.used, body.constant([0])),
            axis=0,
        )
        return body.op("Reshape", body.cast(product, FLOAT), shape)

    def _read(self, elements: ir.Value, scale: str) -> ir.Value:
        """Elements of a cache [B,H,U,D] as keys or values, those of a quantised one in float32."""
        body = self.body
        if self.variant.cache_type is None:
            return elements
        column = body.op("Unsqueeze", self.values[scale], body.constant([1, 2]))
        return body.op("Mul", body.cast(elements, FLOAT), column)

    def _attend(self, key: ir.Value, value: ir.Value, mask: ir.Value) -> ir.Value:
        """y [B,Hq,S,D]: one softmax over the visible slots of key and value [B,Hkv,U,D]."""
        body, values = self.body, self.values
        self.head_dim = body.op("Shape", values["q"], start=3, end=4)
        key, value = self._read(key, "key_scale"), self._read(value, "value_scale")
        if self.variant.keys_on_read:
            rows = body.op("Unsqueeze", values["seen"], body.constant([1]))
            zeros = body.op("Mul", rows, body.constant(0))  # one row of positions per sequence
            positions = body.op("Max", self._slot_tokens(), zeros)
            key = turned(body, key, self._table(positions))
        if self.variant.keys_on_read or self.variant.cache_type is not None:
            key = body.op("CastLike", key, values["q"])
        if self.variant.cache_type is not None:
            value = body.op("CastLike", value, values["q"])
        transposed = body.op("Transpose", key, perm=[0, 1, 3, 2])
        logits = self._logits(values["q"], transposed)
        if "sink_q" in values:
            sink_logits = self._logits(values["sink_q"], transposed)
            logits = body.op("Where", self.sink_slot, sink_logits, logits)
        if self.variant.softcap:
            logits = self._capped(logits)
        weights = self._softmax(body.op("Add", logits, mask))
        rows = body.op("Shape", values["k"], start=0, end=2)
        flat = body.op(
            "Concat",
            rows,
            body.constant([-1]),
            body.op("Unsqueeze", self.used, body.constant([0])),
            axis=0,
        )
        weights = body.op("CastLike", body.op("Reshape", weights, flat), value)
        return body.op("Reshape", body.op("MatMul", weights, value), body.op("Shape", values["q"]))

    def _capped(self, logits: ir.Value) -> ir.Value:
        """softcap·tanh(logits / softcap); a cap of 0 at a site of a capped model means none."""
        body = self.body
        cap = body.attribute("softcap", "float")
        none = body.op("Equal", cap, body.cast(body.constant(0.0, float), FLOAT))
        far = body.cast(body.constant(1e30, float), FLOAT)
        cap = body.op("Where", none, far, cap)
        return body.op("Mul", cap, body.op("Tanh", body.op("Div", logits, cap)))

    def _softmax(self, logits: ir.Value) -> ir.Value:
        """Softmax over the slots; a learned sink logit joins the denominator without a value."""
        body = self.body
        if "head_sink" not in self.variant.optional:
            return body.op("Softmax", logits, axis=-1)
        kv_heads = body.op("Shape", self.values["k"], start=1, end=2)
        sizes = [body.constant([1]), kv_heads, body.constant([-1]), body.constant([1, 1])]
        sink = body.op("Reshape", self.values["head_sink"], body.op("Concat", *sizes, axis=0))
        leading = body.op("Shape", logits, start=0, end=4)
        column = body.op("Concat", leading, body.constant([1]), axis=0)
        joined = body.op("Concat", logits, body.op("Expand", sink, column), axis=4)
        weights = body.op("Softmax", joined, axis=-1)
        return body.op(
            "Slice", weights, body.constant([0]), body.constant([-1]), body.constant([4])
        )

    def _padded(self, y: ir.Value) -> ir.Value:
        """0 for rows that are no tokens, NaN for tokens past the last slot of a full cache."""
        body = self.body
        zero = body.op("CastLike", body.constant(0.0, float), y)
        nan = body.op("CastLike", body.constant(float("nan"), float), y)
        token = body.op("Unsqueeze", self.is_token, body.constant([1, 3]))
        overflow = body.op("Unsqueeze", self.overflow, body.constant([1, 3]))
        return body.op("Where", overflow, nan, body.op("Where", token, y, zero))
