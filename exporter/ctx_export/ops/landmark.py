"""Function body of LandmarkAttention: choose blocks by their representatives, then read those.

With n candidates before query i and N = min(n, topk + 1), the blocks from n - N on and the tokens
after the candidates are met at their own positions from i. Sinks are met at theirs from
i - (n - N)·block, and so are all older blocks, as if they came right after the sinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.ops.attention_steps import AttentionSteps
from ctx_export.ops.builder import FLOAT
from ctx_export.ops.far import FarVariant
from ctx_export.ops.spec import LANDMARK_ATTENTION

# Elements of the keys that one pass over a part of the rows gathers; a row has query heads (or,
# with one choice per KV head, KV heads) · topk · block · head dim of them.
_PASS_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkVariant(FarVariant):
    """What one model's sites of LandmarkAttention need."""

    shared: bool = False  # of all sites
    landmark: bool = False  # of all sites

    def __post_init__(self) -> None:
        FarVariant.__post_init__(self)
        if self.landmark and "head_sink" in self.optional:
            raise ValueError(
                "landmark and a head_sink: the grouped softmax has no learned sink, so leave one "
                "of them out"
            )


def landmark_attention(variant: LandmarkVariant) -> ir.Function:
    """The portable body for `variant`; see `ops.spec` for the shapes."""
    return _Landmark(variant).function()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Some rows R of the call and where they meet what; positions are [B,R]."""

    q: ir.Value  # [B,Hq,R,D]
    token: ir.Value
    candidates: ir.Value  # n
    oldest_near: ir.Value  # n - N
    far: ir.Value  # position for the sinks and far blocks


class _Landmark(AttentionSteps):
    def __init__(self, variant: LandmarkVariant) -> None:
        super().__init__(LANDMARK_ATTENTION, variant)
        self.variant = variant

    # Slots and writing

    def _slot(self, tokens: ir.Value) -> ir.Value:
        body = self.body
        if self.variant.landmark:
            return tokens
        after = body.op("Sub", tokens, self.sinks)
        moved = body.op("Add", tokens, body.op("Div", after, self.block))
        return body.op("Where", body.op("Less", tokens, self.sinks), tokens, moved)

    def _held(self, slots: ir.Value) -> ir.Value:
        """Slots as such that exist, where they are read for nothing."""
        last = self.body.op("Sub", self.capacity, self.body.constant(1))
        return self.body.op("Min", slots, last)

    def fits(self) -> ir.Value | None:
        body, one = self.body, self.body.constant(1)
        self.sinks, self.block = body.attribute("sinks"), body.attribute("block")
        self.stride = self.block if self.variant.landmark else body.op("Add", self.block, one)
        return body.op("Less", self._slot(self.token), self.capacity)

    def write(self) -> tuple[ir.Value, ir.Value]:
        """Tokens and the means after them are one run of slots from the first row's on."""
        if self.variant.landmark:
            return super().write()
        body, values, zero, one = (
            self.body,
            self.values,
            self.body.constant(0),
            self.body.constant(1),
        )
        most = body.op("Add", self.rows, body.op("Sub", self.block, one))
        count = body.op("Div", most, self.block)  # blocks that S rows complete at most
        block = body.op(
            "Div", body.op("Max", body.op("Sub", self.seen, self.sinks), zero), self.block
        )
        first = body.op("Add", self.sinks, body.op("Mul", block, self.block))
        tokens = body.op("Add", first, self.counted(body.op("Mul", count, self.block)))
        held = self._held(self._slot(tokens))
        means = self.means(values["past_key"], values["k"], first, self.block, held)

        length = body.op("Min", body.op("Add", self.rows, count), self.capacity)
        slot = body.op("Add", self._slot(self.seen), self.counted(length))
        after = body.op("Sub", slot, self.sinks)
        number, offset = body.op("Div", after, self.stride), body.op("Mod", after, self.stride)
        sink = body.op("Less", after, zero)
        is_mean = body.op("And", body.op("Not", sink), body.op("Equal", offset, self.block))
        token = body.op("Where", sink, slot, body.op("Sub", slot, number))
        # A mean is due with the last token of its block, which is the one before it.
        due = body.op("Sub", token, body.op("Where", is_mean, one, zero))
        written = body.op(
            "And",
            body.op("Less", due, self.column(self.total)),
            body.op("Less", slot, self.capacity),
        )
        last = body.op("Sub", body.op("Add", self.rows, count), one)
        row = body.op("Sub", token, self.seen)
        mean_row = body.op("Add", self.rows, body.op("Sub", number, block))
        row = body.op("Where", is_mean, mean_row, row)
        source = self.slot_index(body.op("Max", body.op("Min", row, last), zero))
        nothing = body.op("CastLike", body.constant(0.0, float), means)
        nothing = body.op("Expand", nothing, body.op("Shape", means))
        keys, kept_values = (
            body.op("GatherND", body.op("Concat", rows, beside, axis=2), source)
            for rows, beside in ((values["k"], means), (values["v"], nothing))
        )
        slots = body.op("Mod", slot, self.capacity)
        return self.written_rows(slots, keys, kept_values, written)

    # Rows

    def attended(self, key: ir.Value, value: ir.Value) -> ir.Value:
        """The rows in passes of bounded memory."""
        body, one = self.body, self.body.constant(1)
        self.key, self.value = key, value
        self.window, self.topk = body.attribute("window"), body.attribute("topk")
        self._representatives()
        heads = self.values["k" if self.variant.shared else "q"]
        self.span = body.op("Mul", self.chosen, self.block)
        gathered = body.op("Mul", self.span, body.dimension(heads, 1))  # keys of one row
        self._block_keys(body.op("Mul", gathered, self.rows))
        for axis in (0, 3):
            gathered = body.op("Mul", gathered, body.dimension(heads, axis))
        rows = body.op("Div", body.constant(_PASS_ELEMENTS), gathered)
        rows = body.op("Min", body.op("Max", rows, one), self.rows)
        trips = body.op("Div", body.op("Sub", body.op("Add", self.rows, rows), one), rows)

        def step(number: ir.Value, y: ir.Value) -> ir.Value:
            start = body.op("Mul", number, rows)
            return body.op("Concat", y, self._pass(start, body.op("Add", start, rows)), axis=2)

        nothing = self.cut(self.values["q"], None, body.constant(0))
        return body.loop(trips, nothing, step)

    def _representatives(self) -> None:
        """Those of the blocks in use, rotated as near and as far ones, float32 [B,Hkv,M,D]; at
        least one, which may stand for no block."""
        body, one = self.body, self.body.constant(1)
        own = body.op("Sub", self.stride, one)  # the last slot of a block
        start = self._held(body.op("Add", self.sinks, own))
        self.used = body.op("Max", self._slot(self.most(self.total)), body.op("Add", start, one))
        edges = [self.vector(edge) for edge in (start, self.used)]
        found = body.op("Slice", self.key, *edges, body.constant([2]), self.vector(self.stride))
        found = body.cast(found, FLOAT)
        self.blocks = body.dimension(found, 2)
        self.chosen = body.op("Min", self.topk, self.blocks)
        offset = (
            body.op("Sub", self.block, one)
            if self.variant.landmark
            else body.op("Div", self.block, body.constant(2))
        )
        at = body.op("Add", self.sinks, offset)
        self.near_keys = self.turned_by(found, self.run(at, self.block, self.blocks))
        self.far_keys = self.turned(found, body.op("Unsqueeze", at, body.constant([0, 1])))

    def _block_keys(self, gathered: ir.Value) -> None:
        """A block is rotated as if it began at position 0: once for all where the call gathers
        more keys than there are, else after they are gathered."""
        body, zero = self.body, self.body.constant(0)
        self.offsets = self.run(zero, body.constant(1), self.block)
        every = body.op("Mul", body.dimension(self.key, 1), self.used)
        self.early = body.op("Greater", gathered, every)

        def rotated() -> ir.Value:
            keys = self.cut(self.key, None, self.used)
            after = body.op("Sub", self.counted(body.dimension(keys, 2)), self.sinks)
            last = body.op("Sub", self.block, body.constant(1))
            offset = body.op("Min", body.op("Mod", after, self.stride), last)
            return self.turned_by(keys, self.rows_of(self.offsets, offset))

        self.rotated = body.choose(self.early, rotated, lambda: self.cut(self.key, None, zero))

    def _pass(self, start: ir.Value, end: ir.Value) -> ir.Value:
        """y [B,Hq,R,D] of the rows from `start` to before `end`."""
        rows = self._rows(start, end)
        logits, slots = self._block_logits(rows)
        tokens, near, visible = self._near_logits(rows)
        if self.variant.landmark:
            near_weights, weights = self._grouped(rows, tokens, near, visible, logits)
        else:
            near_weights, weights = self._joint(near, visible, logits)
        near_value = self._gathered(self.value, self._by_kv_head(self._held(self._slot(tokens))))
        y = self.weighted(near_weights, near_value, rows.q)
        return self.body.op("Add", y, self._block_values(rows, weights, slots))

    def _rows(self, start: ir.Value, end: ir.Value) -> _Rows:
        body, zero, one = self.body, self.body.constant(0), self.body.constant(1)
        token = self.cut(self.token, start, end, axis=1)
        ends = body.op("Add", self.sinks, self.window)
        behind = body.op("Max", body.op("Sub", body.op("Add", token, one), ends), zero)
        candidates = body.op("Div", behind, self.block)
        kept = body.op("Min", candidates, body.op("Add", self.topk, one))
        oldest_near = body.op("Sub", candidates, kept)
        return _Rows(
            q=self.cut(self.values["q"], start, end),
            token=token,
            candidates=candidates,
            oldest_near=oldest_near,
            far=body.op("Sub", token, body.op("Mul", oldest_near, self.block)),
        )

    def _by_row(self, x: ir.Value) -> ir.Value:
        """[B,R] as [B,1,1,R,1]."""
        return self.body.op("Unsqueeze", x, self.body.constant([1, 2, 4]))

    # Chosen blocks

    def _choice(self, rows: _Rows) -> ir.Value:
        """The chosen blocks of every row [B,Hkv,O,R,K], O heads that choose per KV head; those
        that are no candidates come last."""
        body, q = self.body, self.body.cast(rows.q, FLOAT)
        near = self.logits(self.turned(q, rows.token), self.near_keys)
        far = self.logits(self.turned(q, rows.far), self.far_keys)
        number = self.counted(self.blocks)
        is_near = body.op("GreaterOrEqual", number, self._by_row(rows.oldest_near))
        scores = body.op("Where", is_near, near, far)
        if self.variant.shared:
            scores = body.op("ReduceSum", scores, body.constant([2]), keepdims=1)
        candidate = body.op("Less", number, self._by_row(rows.candidates))
        scores = self.masked(candidate, scores)
        top = ir.node("TopK", [scores, self.vector(self.chosen)], num_outputs=2)
        body.append(top)
        return top.outputs[1]

    def _block_logits(self, rows: _Rows) -> tuple[ir.Value, ir.Value]:
        """Logits of the tokens of the chosen blocks [B,Hkv,G,R,K,b], and their slots
        [B,Hkv,O·R·K·b]."""
        body, size = self.body, self.vector(self.block)
        blocks = self._choice(rows)
        first = body.op("Add", self.sinks, body.op("Mul", blocks, self.stride))
        first = body.op("Unsqueeze", first, body.constant([5]))
        slots = body.op("Add", first, self.counted(self.block))
        slots = self._held(self.reshaped(slots, 0, 0, -1))

        def blocks_of(x: ir.Value) -> ir.Value:
            """[B,X,b,D], X = Hkv·O·R·K."""
            return self.reshaped(self._gathered(x, slots), 0, -1, size, self.head_dim())

        keys = body.choose(
            self.early,
            lambda: blocks_of(self.rotated),
            lambda: self.turned_by(blocks_of(self.key), self.offsets),
        )
        place = body.op("Add", self.sinks, body.op("Mul", blocks, self.block))
        is_near = body.op("GreaterOrEqual", blocks, self._by_row(rows.oldest_near))
        near = body.op("Sub", self._by_row(rows.token), place)
        far = body.op("Sub", self._by_row(rows.far), self.sinks)
        q = self._block_queries(rows, body.op("Where", is_near, near, far))
        product = body.cast(body.op("MatMul", keys, q), FLOAT)  # [B,X,b,G/O]
        count, chosen = self.size(rows.token, 1), self.vector(self.chosen)
        inner = self.size(product, 3)
        logits = self.reshaped(product, 0, self.kv_heads(), -1, count, chosen, size, inner)
        logits = body.op("Transpose", logits, perm=[0, 1, 2, 6, 3, 4, 5])
        logits = self.reshaped(logits, 0, 0, self.group(), count, chosen, size)
        candidate = body.op("Less", blocks, self._by_row(rows.candidates))
        candidate = body.op("Unsqueeze", candidate, body.constant([5]))
        return self.masked(candidate, self.capped_logits(logits)), slots

    def _block_queries(self, rows: _Rows, positions: ir.Value) -> ir.Value:
        """scale · q at `positions` [B,Hkv,O,R,K] from the blocks' first tokens: [B,X,D,G/O]."""
        body, heads, dim = self.body, self.kv_heads(), self.head_dim()
        outer, count = self.size(positions, 2), self.size(positions, 3)
        inner = body.op("Div", self.group(), outer)
        q = self.reshaped(rows.q, 0, heads, outer, inner, count, 1, dim)
        chosen = self.sizes(1, 1, 1, 1, 1, self.vector(self.chosen), 1)
        q = body.op("Expand", q, chosen)
        positions = body.op("Unsqueeze", positions, body.constant([3]))
        positions = body.op("Expand", positions, body.op("Shape", q, end=6))
        q = self.turned(self.reshaped(q, 0, 1, -1, dim), self.reshaped(positions, 0, -1))
        scaled = body.op("Mul", body.cast(q, FLOAT), body.attribute("scale", "float"))
        q = self.reshaped(body.op("CastLike", scaled, q), 0, heads, outer, inner, -1, dim)
        return self.reshaped(body.op("Transpose", q, perm=[0, 1, 2, 4, 5, 3]), 0, -1, dim, inner)

    def _block_values(self, rows: _Rows, weights: ir.Value, slots: ir.Value) -> ir.Value:
        """Sums [B,Hq,R,D] of the values in `slots` by weights [B,Hkv,G,R,K·b]."""
        body, span, dim = self.body, self.vector(self.span), self.head_dim()
        values = self.reshaped(self._gathered(self.value, slots), 0, -1, span, dim)
        weights = body.op("CastLike", weights, values)
        if self.variant.shared:  # values [B,Hkv·R,K·b,D]
            weights = body.op("Transpose", weights, perm=[0, 1, 3, 2, 4])
            weights = self.reshaped(weights, 0, -1, self.group(), span)
            y = self.reshaped(
                body.op("MatMul", weights, values), 0, self.kv_heads(), -1, self.group(), dim
            )
            y = body.op("Transpose", y, perm=[0, 1, 3, 2, 4])
        else:  # [B,Hq·R,K·b,D]
            y = body.op("MatMul", self.reshaped(weights, 0, -1, 1, span), values)
        return body.op("Reshape", y, body.op("Shape", rows.q))

    # Sinks and the tokens after the candidates

    def _near_logits(self, rows: _Rows) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The sinks and whole blocks from the first row's first token after its candidates on:
        tokens [B,L], logits [B,Hkv,G,R,L], and which a row sees, [B,1,1,R,L]."""
        body, zero, one = self.body, self.body.constant(0), self.body.constant(1)
        leading = self.cut(rows.candidates, None, one, axis=1)
        first = body.op("Add", self.sinks, body.op("Mul", leading, self.block))
        last = self.cut(rows.token, body.constant(-1), None, axis=1)
        reach = body.op("ReduceMax", body.op("Sub", last, first), keepdims=0)
        count = body.op("Add", body.op("Div", body.op("Max", reach, zero), self.block), one)
        after = body.op("Add", first, self.counted(body.op("Mul", count, self.block)))
        sinks = body.op("Add", body.op("Mul", first, zero), self.counted(self.sinks))
        tokens = body.op("Concat", sinks, after, axis=1)
        key = self._gathered(self.key, self._by_kv_head(self._held(self._slot(tokens))))
        key = self.turned(key, tokens)
        parts = [
            self.logits(self.turned(rows.q, positions), self.cut(key, start, end))
            for positions, start, end in (
                (rows.far, None, self.sinks),
                (rows.token, self.sinks, None),
            )
        ]
        logits = self.capped_logits(body.op("Concat", *parts, axis=4))
        token = body.op("Unsqueeze", tokens, body.constant([1, 2, 3]))
        past = body.op("LessOrEqual", token, self._by_row(rows.token))
        start = body.op("Add", self.sinks, body.op("Mul", rows.candidates, self.block))
        kept = body.op("GreaterOrEqual", token, self._by_row(start))
        sink = body.op("Less", token, self.sinks)
        return tokens, logits, body.op("And", past, body.op("Or", sink, kept))

    # Softmax

    def _joint(
        self, near: ir.Value, visible: ir.Value, blocks: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """One softmax: weights of near [B,Hkv,G,R,L] and of blocks as [B,Hkv,G,R,K·b]."""
        body = self.body
        flat = self.reshaped(blocks, 0, 0, 0, 0, -1)
        near = self.masked(visible, near)
        weights = self.softmax(body.op("Concat", near, flat, axis=4))
        length = body.dimension(near, 4)
        return self.cut(weights, None, length, axis=4), self.cut(weights, length, None, axis=4)

    def _grouped(
        self, rows: _Rows, tokens: ir.Value, near: ir.Value, visible: ir.Value, blocks: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """The grouped softmax (arXiv 2305.16300, section 3.2), weights as `_joint` gives them.

        The outer softmax is over the sinks, the tokens of the query's own block and the landmarks
        of all other blocks; an inner one is over the tokens of every block.
        """
        body = self.body
        last = body.op("Sub", self.block, body.constant(1))
        after = body.op("Sub", tokens, self.sinks)
        sink = body.op("Less", after, body.constant(0))
        offset = body.op("Mod", after, self.block)
        is_landmark = body.op("And", body.op("Not", sink), body.op("Equal", offset, last))
        after, sink, is_landmark = (
            body.op("Unsqueeze", part, body.constant([1, 2, 3]))
            for part in (after, sink, is_landmark)
        )
        own_block = body.op("Div", body.op("Sub", rows.token, self.sinks), self.block)
        own = body.op("Equal", body.op("Div", after, self.block), self._by_row(own_block))
        own = body.op("Or", sink, own)
        outer = body.op("And", visible, body.op("Xor", own, is_landmark))
        gates = body.op("Squeeze", self.cut(blocks, last, self.block, axis=5), body.constant([5]))
        joined = body.op("Concat", self.masked(outer, near), gates, axis=4)
        shares = body.op("Softmax", joined, axis=-1)
        length = body.dimension(near, 4)
        near_shares = self.cut(shares, None, length, axis=4)
        gates = body.op("Unsqueeze", self.cut(shares, length, None, axis=4), body.constant([5]))
        weights = body.op("Mul", gates, self._within(blocks))

        # A token has a share of its own block or of the landmark's; the other one is 0.
        size = self.vector(self.block)
        tail, tail_logits = (
            self.reshaped(self.cut(part, self.sinks, None, axis=4), 0, 0, 0, 0, -1, size)
            for part in (near_shares, near)
        )
        tail_gates = self.cut(tail, last, self.block, axis=5)
        tail = body.op("Add", tail, body.op("Mul", tail_gates, self._within(tail_logits)))
        zero = body.cast(body.constant(0.0, float), FLOAT)
        tail = body.op("Where", self._is_last(), zero, tail)
        sinks = self.cut(near_shares, None, self.sinks, axis=4)
        near_weights = body.op("Concat", sinks, self.reshaped(tail, 0, 0, 0, 0, -1), axis=4)
        return near_weights, self.reshaped(weights, 0, 0, 0, 0, -1)

    def _within(self, logits: ir.Value) -> ir.Value:
        """Softmax over the tokens of every block [… ,b], without its landmark."""
        regular = self.body.op("Not", self._is_last())
        return self.body.op("Softmax", self.masked(regular, logits), axis=-1)

    def _is_last(self) -> ir.Value:
        """Which token of a block [b] is its last."""
        last = self.body.op("Sub", self.block, self.body.constant(1))
        return self.body.op("Equal", self.counted(self.block), last)

    # Reading

    def _gathered(self, cache: ir.Value, slots: ir.Value) -> ir.Value:
        """Rows [B,Hkv,N,D] of a cache in slots [B,Hkv,N]."""
        column = self.body.op("Unsqueeze", slots, self.body.constant([3]))
        return self.body.op("GatherND", cache, column, batch_dims=2)

    def _by_kv_head(self, slots: ir.Value) -> ir.Value:
        """[B,N] as [B,Hkv,N]."""
        column = self.body.op("Unsqueeze", slots, self.body.constant([1]))
        return self.body.op("Expand", column, self.sizes(1, self.kv_heads(), 1))
