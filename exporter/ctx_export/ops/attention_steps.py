"""What the bodies of all attentions have in common: layouts, positions, writing, one softmax.

Reads go through `present` only, so that data flow alone orders them after the write when a
runtime lets present share memory with past; what is read of past feeds the write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir

from ctx_export.ops.builder import FLOAT, BodyBuilder
from ctx_export.ops.rotary import rotary_run, rotary_table, turned
from ctx_export.ops.spec import DOMAIN, Layout, OperatorSpec

FAR = 1 << 62  # farther than any token
_MASKED = -3.0e38  # finite, so that a row without visible keys stays finite until it is zeroed
_COPY_SHARE = 16  # rows of attention over one slot that cost as much as copying it, measured

Table = tuple[ir.Value, ir.Value]  # cos and sin [1|B,1|N,F], float32


class Variant(Protocol):
    """What one model's sites of an attention need; a body may not mention an absent input."""

    @property
    def optional(self) -> tuple[str, ...]: ...

    @property
    def softcap(self) -> bool:
        """Whether some site caps its logits."""

    @property
    def layout(self) -> Layout:
        """Of all sites' q, k, v and y."""


def check_optional(optional: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError unless `optional` are some of `known`, in their order."""
    if list(optional) != [name for name in known if name in optional]:
        raise ValueError(f"optional inputs {optional} are not an ordered subset of {known}")


class AttentionSteps:
    """The builder of one body, the call's position arithmetic and the steps of every attention.

    A subclass says how it attends. By default token t is in slot t and sees all tokens before it;
    where that differs, it says which slots rows take, what else is written and what is visible.
    """

    def __init__(self, spec: OperatorSpec, variant: Variant) -> None:
        self.spec, self.inputs = spec, spec.inputs + variant.optional
        self.capped, self.layout = variant.softcap, variant.layout

    def function(self) -> ir.Function:
        self.body = BodyBuilder(self.inputs)
        self.values = dict(self.body.inputs)
        if self.layout:
            self._split_heads()
        self._positions()
        key, value = self.write()
        y = self._padded(self.attended(key, value))
        if self.layout:
            y = self._joined_heads(y)
        outputs = [y, self.kept(key), self.kept(value)]
        return self.body.function(self.spec.name, DOMAIN, outputs, self.spec.attributes)

    def write(self) -> tuple[ir.Value, ir.Value]:
        """present_key and present_value [B,Hkv,C,D], as they are read. Rows that are no tokens
        take slots that no token of this call has: S ≤ C consecutive ones differ."""
        slots = self.body.op("Mod", self.token, self.capacity)
        return self.written_rows(slots, self.values["k"], self.values["v"], self.written)

    def kept(self, present: ir.Value) -> ir.Value:
        """What was written, as the cache's own type."""
        return present

    def attended(self, key: ir.Value, value: ir.Value) -> ir.Value:
        """y [B,Hq,S,D], whatever rows that are no tokens give, from what was written."""
        return self.narrowed(self.most(self.total), key, value)

    def mask(self) -> ir.Value:
        """Which of the `used` slots each row sees, as `additive` makes it."""
        row = self.body.op("Unsqueeze", self.token, self.body.constant([2]))
        return self.additive(self.body.op("LessOrEqual", self.counted(self.used), row))

    def attend(self, key: ir.Value, value: ir.Value, mask: ir.Value) -> ir.Value:
        """y [B,Hq,S,D] of key and value [B,Hkv,U,D]."""
        raise NotImplementedError

    def fits(self) -> ir.Value | None:
        """Which rows [B,S] have a slot; None: all."""
        return self.body.op("Less", self.token, self.capacity)

    # Layouts

    def _split_heads(self) -> None:
        """q, k and v as [B,H,S,D]; of a packed one the first heads are q's, the last v's."""
        body, values = self.body, self.values
        dim = self.head_dim()
        if self.layout == Layout.TOKEN_MAJOR:
            for name in ("q", "k", "v"):
                values[name] = self._by_head(values[name], dim)
            return
        packed = self._by_head(values["q"], dim)
        kv_heads = self.kv_heads()
        values_from = body.op("Neg", kv_heads)
        keys_from = body.op("Mul", kv_heads, body.constant([-2]))
        zero, end, axis = body.constant([0]), body.constant([FAR]), body.constant([1])
        for name, first, last in (
            ("q", zero, keys_from),
            ("k", keys_from, values_from),
            ("v", values_from, end),
        ):
            values[name] = body.op("Slice", packed, first, last, axis)

    def _by_head(self, x: ir.Value, dim: ir.Value) -> ir.Value:
        """x [B,S,H·D] as [B,H,S,D]."""
        heads = self.body.op("Div", self.size(x, 2), dim)
        return self.body.op("Transpose", self.reshaped(x, 0, 0, heads, dim), perm=[0, 2, 1, 3])

    def _joined_heads(self, y: ir.Value) -> ir.Value:
        """y [B,H,S,D] as [B,S,H·D]."""
        width = self.body.op("Mul", self.size(y, 1), self.head_dim())
        rows = self.body.op("Transpose", y, perm=[0, 2, 1, 3])
        return self.reshaped(rows, 0, 0, width)

    # Positions and rotation

    def _positions(self) -> None:
        """Token of every row [B,S], and which rows are tokens, are written or overflow."""
        body, values = self.body, self.values
        self.rows = body.dimension(values["q"], 2)
        index = self.counted(self.rows)
        self.seen = self.column(values["seen"])
        new = self.column(values["new"])
        self.token = body.op("Add", self.seen, index)
        self.is_token = body.op("Less", body.op("Unsqueeze", index, body.constant([0])), new)
        self.total = body.op("Add", values["seen"], values["new"])
        self.capacity = body.dimension(values["past_key"], 2)
        fits = self.fits()
        self.overflow: ir.Value | None = None
        self.written = self.is_token
        if fits is not None:
            # A row past the last slot is not written and gives NaN.
            self.overflow = body.op("And", self.is_token, body.op("Not", fits))
            self.written = body.op("And", self.is_token, fits)

    def counted(self, end: ir.Value) -> ir.Value:
        """0 … end-1."""
        return self.body.op("Range", self.body.constant(0), end, self.body.constant(1))

    def column(self, x: ir.Value) -> ir.Value:
        """[B] as [B,1]."""
        return self.body.op("Unsqueeze", x, self.body.constant([1]))

    def vector(self, scalar: ir.Value) -> ir.Value:
        """A scalar as [1]."""
        return self.body.op("Unsqueeze", scalar, self.body.constant([0]))

    def table(self, positions: ir.Value) -> Table:
        """cos and sin of positions [1|B,N]."""
        values = self.values
        return rotary_table(self.body, positions, values["inv_freq"], values["multiplier"])

    def run(self, start: ir.Value, step: ir.Value, count: ir.Value) -> Table | None:
        """The same at `count` positions from `start` on, `step` apart; all three are scalars.
        None where the call has no frequencies."""
        values = self.values
        if "inv_freq" not in values:
            return None
        numbers = (start, step, count)
        return rotary_run(self.body, numbers, values["inv_freq"], values["multiplier"])

    def rows_of(self, table: Table | None, index: ir.Value) -> Table | None:
        """The table's rows `index` [N]."""
        if table is None:
            return None
        cos, sin = (self.body.op("Gather", part, index, axis=1) for part in table)
        return cos, sin

    def turned(self, x: ir.Value, positions: ir.Value) -> ir.Value:
        """x [B,H,N,D] rotated at `positions` [1|B,1|N] and rounded to its type; x itself where the
        call has no frequencies."""
        return self.turned_by(x, self.table(positions) if "inv_freq" in self.values else None)

    def turned_by(self, x: ir.Value, table: Table | None) -> ir.Value:
        """The same by a table [1|B,1|N,F]."""
        if table is None:
            return x
        body = self.body
        sizes = self.sizes(self.size(x, 0), self.size(x, 2), 1)
        cos, sin = (body.op("Expand", part, sizes) for part in table)
        return body.op("CastLike", turned(body, x, (cos, sin)), x)

    # Writing

    def written_rows(
        self, slots: ir.Value, keys: ir.Value, values: ir.Value, keep: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """The caches with keys and values [B,Hkv,N,D] in their slots [B,N] where `keep` [B,N]."""
        index = self.slot_index(slots)
        return (
            self.scattered(self.values["past_key"], index, keys, keep),
            self.scattered(self.values["past_value"], index, values, keep),
        )

    def scattered(
        self, past: ir.Value, index: ir.Value, rows: ir.Value, keep: ir.Value
    ) -> ir.Value:
        """past [B,H,C,D] with rows [B,H,N,D] at `index` [B,H,N,3] where `keep` [B,N]."""
        body = self.body
        kept = body.op("GatherND", past, index)
        chosen = body.op("Unsqueeze", keep, body.constant([1, 3]))
        return body.op("ScatterND", past, index, body.op("Where", chosen, rows, kept))

    def slot_index(self, slots: ir.Value) -> ir.Value:
        """(batch, head, slot) of slots [B,N] in every KV head: [B,Hkv,N,3]."""
        body, heads = self.body, self.values["k"]
        column = self.sizes(self.size(heads, 0), self.size(heads, 1), self.size(slots, 1), 1)
        batch, count = body.dimension(heads, 0), body.dimension(heads, 1)
        parts = [
            body.op("Unsqueeze", self.counted(batch), body.constant([1, 2, 3])),
            body.op("Unsqueeze", self.counted(count), body.constant([0, 2, 3])),
            body.op("Unsqueeze", slots, body.constant([1, 3])),
        ]
        return body.op("Concat", *(body.op("Expand", part, column) for part in parts), axis=3)

    def means(
        self, past: ir.Value, rows: ir.Value, first: ir.Value, size: ir.Value, slots: ir.Value
    ) -> ir.Value:
        """Means [B,Hkv,R,D] of R blocks of `size` (a scalar) tokens from token `first` [B,1] on:
        those before `seen` from the past's `slots` [B,R·size], others from this call's rows. Their
        sums are float32; they are rounded to the type of the rows."""
        body = self.body
        index = self.counted(body.dimension(slots, 1))
        row = body.op("Sub", body.op("Add", first, index), self.seen)
        old = body.op("Less", row, body.constant(0))
        last = body.op("Sub", self.rows, body.constant(1))
        row = body.op("Min", body.op("Max", row, body.constant(0)), last)
        tokens = body.op(
            "Where",
            body.op("Unsqueeze", old, body.constant([1, 3])),
            body.op("GatherND", past, self.slot_index(slots)),
            body.op("GatherND", rows, self.slot_index(row)),
        )
        tokens = body.cast(tokens, FLOAT)
        blocks = self.reshaped(tokens, 0, 0, -1, self.vector(size), self.head_dim())
        mean = body.op("ReduceMean", blocks, body.constant([3]), keepdims=0)
        return body.op("CastLike", mean, rows)

    # Which slots are read

    def narrowed(self, used: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        """`attend` over the leading `used` slots (a scalar) where the rest is worth a copy, else
        over all.

        A slice copies keys and values, which in a decode step costs as much as reading them;
        reading all C slots costs (C - used) / used more. With S rows the work per slot grows with
        S, the copy does not.
        """
        body = self.body
        used = body.op("Min", used, self.capacity)
        spare = body.op("Sub", self.capacity, used)
        share = body.constant(_COPY_SHARE)
        wasted = body.op("Mul", spare, body.op("Add", self.rows, share))
        narrow = body.op("Greater", wasted, body.op("Mul", used, share))
        self.used = body.op("Where", narrow, used, self.capacity)
        mask = self.mask()
        return body.choose(
            narrow,
            lambda: self.attend(
                self.cut(key, None, self.used), self.cut(value, None, self.used), mask
            ),
            lambda: self.attend(key, value, mask),
        )

    def most(self, per_sequence: ir.Value) -> ir.Value:
        """The largest of [B], a scalar."""
        return self.body.op("ReduceMax", per_sequence, keepdims=0)

    def least(self, per_sequence: ir.Value) -> ir.Value:
        """The smallest of [B], a scalar."""
        return self.body.op("ReduceMin", per_sequence, keepdims=0)

    def cut(
        self, x: ir.Value, start: ir.Value | None, end: ir.Value | None, axis: int = 2
    ) -> ir.Value:
        """x from `start` to before `end`, scalars, along an axis; None: its first and last."""
        body = self.body
        first, last = (
            body.constant([edge]) if given is None else self.vector(given)
            for given, edge in ((start, 0), (end, FAR))
        )
        return body.op("Slice", x, first, last, body.constant([axis]))

    def slot_within(self, slot: ir.Value) -> ir.Value:
        """A scalar as one of the `used` slots."""
        body = self.body
        last = body.op("Sub", self.used, body.constant(1))
        return body.op("Max", body.op("Min", slot, last), body.constant(0))

    def additive(self, visible: ir.Value) -> ir.Value:
        """Mask [B,1,1,S,U] float32 of visible [B,S,U]: 0 where a row sees a slot."""
        body = self.body
        visible = body.op("Unsqueeze", visible, body.constant([1, 2]))
        zero, masked = body.constant(0.0, float), body.constant(_MASKED, float)
        return body.cast(body.op("Where", visible, zero, masked), FLOAT)

    # Attention

    def logits(self, q: ir.Value, key: ir.Value) -> ir.Value:
        """scale · q·k as float32 [B,Hkv,G,S,U] of q [B,Hq,S,D] and key [B,Hkv,U,D], where the G
        query heads of one KV head share its keys."""
        body = self.body
        # Scaling S·D query values is cheaper than S·U logits.
        scaled = body.op("Mul", body.cast(q, FLOAT), body.attribute("scale", "float"))
        scaled = body.op("CastLike", scaled, q)
        query = self.reshaped(scaled, 0, self.kv_heads(), -1, self.head_dim())
        product = body.op("MatMul", query, body.op("Transpose", key, perm=[0, 1, 3, 2]))
        batch, slots = self.size(key, 0), self.size(key, 2)
        shape = self.sizes(batch, self.kv_heads(), self.group(), self.size(q, 2), slots)
        # A part without slots is empty.
        return body.op("Reshape", body.cast(product, FLOAT), shape, allowzero=1)

    def overlaid(
        self, logits: ir.Value, own: ir.Value, met: ir.Value, start: ir.Value
    ) -> ir.Value:
        """Logits [B,Hkv,G,S,U] with `own`, those of the slots from `start` (a scalar) on, in place
        of theirs where `met` [B,S,U-start]."""
        body = self.body
        met = body.op("Unsqueeze", met, body.constant([1, 2]))
        later = body.op("Where", met, own, self.cut(logits, start, None, axis=4))
        return body.op("Concat", self.cut(logits, None, start, axis=4), later, axis=4)

    def capped_logits(self, logits: ir.Value) -> ir.Value:
        """softcap·tanh(logits / softcap); a cap of 0 at a site of a capped model means none."""
        if not self.capped:
            return logits
        body = self.body
        cap = body.attribute("softcap", "float")
        none = body.op("Equal", cap, body.cast(body.constant(0.0, float), FLOAT))
        far = body.cast(body.constant(1e30, float), FLOAT)
        cap = body.op("Where", none, far, cap)
        return body.op("Mul", cap, body.op("Tanh", body.op("Div", logits, cap)))

    def softmax(self, logits: ir.Value) -> ir.Value:
        """Softmax over the slots; a learned sink logit joins the denominator without a value."""
        body = self.body
        if "head_sink" not in self.values:
            return body.op("Softmax", logits, axis=-1)
        sink = self.reshaped(self.values["head_sink"], 1, self.kv_heads(), -1, 1, 1)
        column = self.sizes(body.op("Shape", logits, end=4), 1)
        joined = body.op("Concat", logits, body.op("Expand", sink, column), axis=4)
        weights = body.op("Softmax", joined, axis=-1)
        return body.op(
            "Slice", weights, body.constant([0]), body.constant([-1]), body.constant([4])
        )

    def weighted(self, weights: ir.Value, value: ir.Value, q: ir.Value) -> ir.Value:
        """Sums of value [B,Hkv,U,D] by weights [B,Hkv,G,S,U], as q [B,Hq,S,D] lies."""
        body = self.body
        weights = self.reshaped(weights, 0, 0, -1, self.size(value, 2))
        weights = body.op("CastLike", weights, value)
        return body.op("Reshape", body.op("MatMul", weights, value), body.op("Shape", q))

    def masked(self, kept: ir.Value, logits: ir.Value) -> ir.Value:
        """Logits, float32, where they are kept; elsewhere such that their weight is 0."""
        masked = self.body.cast(self.body.constant(_MASKED, float), FLOAT)
        return self.body.op("Where", kept, logits, masked)

    def _padded(self, y: ir.Value) -> ir.Value:
        """0 for rows that are no tokens, NaN for tokens that have no slot."""
        body = self.body
        zero = body.op("CastLike", body.constant(0.0, float), y)
        token = body.op("Unsqueeze", self.is_token, body.constant([1, 3]))
        y = body.op("Where", token, y, zero)
        if self.overflow is None:
            return y
        nan = body.op("CastLike", body.constant(float("nan"), float), y)
        overflow = body.op("Unsqueeze", self.overflow, body.constant([1, 3]))
        return body.op("Where", overflow, nan, y)

    # Sizes

    def size(self, x: ir.Value, axis: int) -> ir.Value:
        """A dimension as [1]."""
        return self.body.op("Shape", x, start=axis, end=axis + 1)

    def sizes(self, *parts: int | ir.Value) -> ir.Value:
        """A shape of numbers and of vectors."""
        body = self.body
        vectors = [body.constant([part]) if isinstance(part, int) else part for part in parts]
        return body.op("Concat", *vectors, axis=0)

    def reshaped(self, x: ir.Value, *parts: int | ir.Value) -> ir.Value:
        """x in a shape of `parts`; 0 keeps a dimension, -1 takes what is left."""
        return self.body.op("Reshape", x, self.sizes(*parts))

    def head_dim(self) -> ir.Value:
        """[1]."""
        return self.body.op("Shape", self.values["past_key"], start=3)

    def kv_heads(self) -> ir.Value:
        """[1]."""
        return self.body.op("Shape", self.values["past_key"], start=1, end=2)

    def group(self) -> ir.Value:
        """Query heads of one KV head, [1]."""
        heads = self.body.op("Shape", self.values["q"], start=1, end=2)
        return self.body.op("Div", heads, self.kv_heads())
