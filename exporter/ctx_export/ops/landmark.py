"""Function body of LandmarkAttention: choose blocks by their representatives, then read those.

With n candidates before query i and N = min(n, topk + 1), the blocks from n - N on and the tokens
after the candidates are met at their own positions from i. Sinks are met at theirs from
i - (n - N)·block, and so are all older blocks, as if they came right after the sinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ctx_export.ops.attention_steps import MASKED, AttentionSteps
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
        sizes = [body.dimension(heads, axis) for axis in (0, 1, 3)]
        elements = body.op("Mul", self.chosen, self.block)
        for size in sizes:
            elements = body.op("Mul", elements, size)
        rows = body.op("Div", body.constant(_PASS_ELEMENTS), elements)
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
        end = body.op("Max", self._slot(self.most(self.total)), body.op("Add", start, one))
        edges = [self.vector(edge) for edge in (start, end)]
        found = body.op("Slice", self.key, *edges, body.constant([2]), self.vector(self.stride))
        found = body.cast(found, FLOAT)
        self.blocks = body.dimension(found, 2)
        self.chosen = body.op("Min", self.topk, self.blocks)
        self.number = body.op("Unsqueeze", self.counted(self.blocks), body.constant([0]))  # [1,M]
        offset = (
            body.op("Sub", self.block, one)
            if self.variant.landmark
            else body.op("Div", self.block, body.constant(2))
        )
        place = body.op("Mul", self.number, self.block)
        at = body.op("Add", self.sinks, offset)
        self.near_keys = self.turned(found, body.op("Add", place, at))
        same = body.op("Mul", place, body.constant(0))
        self.far_keys = self.turned(found, body.op("Add", same, at))

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
        number = self.number
        is_near = body.op("GreaterOrEqual", number, self._by_row(rows.oldest_near))
        scores = body.op("Where", is_near, near, far)
        if self.variant.shared:
            scores = body.op("ReduceSum", scores, body.constant([2]), keepdims=1)
        candidate = body.op("Less", number, self._by_row(rows.candidates))
        masked = body.cast(body.constant(MASKED, float), FLOAT)
        scores = body.op("Where", candidate, scores, masked)
        top = ir.node("TopK", [scores, self.vector(self.chosen)], num_outputs=2)
        body.append(top)
        return top.outputs[1]

    def _block_logits(self, rows: _Rows) -> tuple[ir.Value, ir.Value]:
        """Logits of the tokens of the chosen blocks [B,Hkv,G,R,K,b], and their slots
        [B,Hkv,O·R·K·b]."""
        body = self.body
        blocks = self._choice(rows)
        first = body.op("Add", self.sinks, body.op("Mul", blocks, self.stride))
        offset = self.counted(self.block)
        slots = body.op("Add", body.op("Unsqueeze", first, body.constant([5])), offset)
        slots = self._held(body.op("Reshape", slots, body.constant([0, 0, -1])))

        # [B,X,b,D] with X = Hkv·O·R·K: all blocks are rotated as the one right after position 0.
        sizes = [body.constant([0, -1]), self.vector(self.block), self.head_dim()]
        keys = self._gathered(self.key, slots)
        keys = body.op("Reshape", keys, body.op("Concat", *sizes, axis=0))
        keys = self.turned(keys, body.op("Unsqueeze", offset, body.constant([0])))

        place = body.op("Add", self.sinks, body.op("Mul", blocks, self.block))
        is_near = body.op("GreaterOrEqual", blocks, self._by_row(rows.oldest_near))
        near = body.op("Sub", self._by_row(rows.token), place)
        far = body.op("Sub", self._by_row(rows.far), self.sinks)
        product = body.op(
            "MatMul", keys, self._block_queries(rows, body.op("Where", is_near, near, far))
        )
        product = body.cast(product, FLOAT)  # [B,X,b,G/O]
        row_sizes = [body.op("Shape", blocks, start=axis, end=axis + 1) for axis in range(5)]
        inner = body.op("Shape", product, start=3)
        shape = [*row_sizes, self.vector(self.block), inner]
        logits = body.op("Reshape", product, body.op("Concat", *shape, axis=0))
        logits = body.op("Transpose", logits, perm=[0, 1, 2, 6, 3, 4, 5])
        shape = [*row_sizes[:2], self.group(), *row_sizes[3:], self.vector(self.block)]
        logits = self.capped_logits(body.op("Reshape", logits, body.op("Concat", *shape, axis=0)))
        candidate = body.op("Less", blocks, self._by_row(rows.candidates))
        masked = body.cast(body.constant(MASKED, float), FLOAT)
        return body.op(
            "Where", body.op("Unsqueeze", candidate, body.constant([5])), logits, masked
        ), slots

    def _block_queries(self, rows: _Rows, positions: ir.Value) -> ir.Value:
        """scale · q at `positions` [B,Hkv,O,R,K] from the blocks' first tokens: [B,X,D,G/O]."""
        body, dim = self.body, self.head_dim()
        outer = body.op("Shape", positions, start=2, end=3)
        inner = body.op("Div", self.group(), outer)
        row_count = body.op("Shape", positions, start=3, end=4)
        chosen = body.op("Shape", positions, start=4)
        shape = [
            body.constant([0]),
            self.kv_heads(),
            outer,
            inner,
            row_count,
            body.constant([1]),
            dim,
        ]
        q = body.op("Reshape", rows.q, body.op("Concat", *shape, axis=0))
        q = body.op(
            "Expand",
            q,
            body.op("Concat", body.constant([1, 1, 1, 1, 1]), chosen, body.constant([1]), axis=0),
        )
        positions = body.op("Unsqueeze", positions, body.constant([3]))
        positions = body.op("Expand", positions, body.op("Shape", q, end=6))
        flat = body.op("Concat", body.constant([0, 1, -1]), dim, axis=0)
        q = self.turned(
            body.op("Reshape", q, flat), body.op("Reshape", positions, body.constant([0, -1]))
        )
        scaled = body.op("Mul", body.cast(q, FLOAT), body.attribute("scale", "float"))
        # [B,Hkv,O,G/O,R·K,D]
        shape = [body.constant([0]), self.kv_heads(), outer, inner, body.constant([-1]), dim]
        q = body.op("Reshape", body.op("CastLike", scaled, q), body.op("Concat", *shape, axis=0))
        q = body.op("Transpose", q, perm=[0, 1, 2, 4, 5, 3])
        return body.op("Reshape", q, body.op("Concat", body.constant([0, -1]), dim, inner, axis=0))

    def _block_values(self, rows: _Rows, weights: ir.Value, slots: ir.Value) -> ir.Value:
        """Sums [B,Hq,R,D] of the values in `slots` by weights [B,Hkv,G,R,K·b]."""
        body = self.body
        span = body.op("Mul", self.chosen, self.block)
        values = self._gathered(self.value, slots)
        shape = body.op(
            "Concat", body.constant([0, -1]), self.vector(span), self.head_dim(), axis=0
        )
        values = body.op("Reshape", values, shape)  # [B,Hkv·O·R,K·b,D]
        weights = body.op("CastLike", weights, values)
        if self.variant.shared:
            weights = body.op("Transpose", weights, perm=[0, 1, 3, 2, 4])
        inner = self.group() if self.variant.shared else body.constant([1])
        shape = body.op("Concat", body.constant([0, -1]), inner, self.vector(span), axis=0)
        y = body.op("MatMul", body.op("Reshape", weights, shape), values)
        if self.variant.shared:
            sizes = [
                body.constant([0]),
                self.kv_heads(),
                body.constant([-1]),
                inner,
                self.head_dim(),
            ]
            y = body.op("Reshape", y, body.op("Concat", *sizes, axis=0))
            y = body.op("Transpose", y, perm=[0, 1, 3, 2, 4])
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
        flat = body.op("Reshape", blocks, body.constant([0, 0, 0, 0, -1]))
        masked = body.cast(body.constant(MASKED, float), FLOAT)
        near = body.op("Where", visible, near, masked)
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
        masked = body.cast(body.constant(MASKED, float), FLOAT)
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
        gate_logits = self.cut(blocks, last, self.block, axis=5)
        gates = body.op("Squeeze", gate_logits, body.constant([5]))
        shares = body.op(
            "Softmax",
            body.op("Concat", body.op("Where", outer, near, masked), gates, axis=4),
            axis=-1,
        )
        length = body.dimension(near, 4)
        near_shares = self.cut(shares, None, length, axis=4)
        gates = body.op("Unsqueeze", self.cut(shares, length, None, axis=4), body.constant([5]))

        flat = body.constant([0, 0, 0, 0, -1])
        size = body.op("Concat", flat, self.vector(self.block), axis=0)
        weights = body.op("Reshape", body.op("Mul", gates, self._within(blocks)), flat)

        # A token has a share of its own block or of the landmark's; the other one is 0.
        tail, tail_logits = (
            body.op("Reshape", self.cut(part, self.sinks, None, axis=4), size)
            for part in (near_shares, near)
        )
        tail_gates = self.cut(tail, last, self.block, axis=5)
        tail = body.op("Add", tail, body.op("Mul", tail_gates, self._within(tail_logits)))
        zero = body.cast(body.constant(0.0, float), FLOAT)
        tail = body.op("Reshape", body.op("Where", self._is_last(), zero, tail), flat)
        sinks = self.cut(near_shares, None, self.sinks, axis=4)
        return body.op("Concat", sinks, tail, axis=4), weights

    def _within(self, logits: ir.Value) -> ir.Value:
        """Softmax over the tokens of every block [… ,b], without its landmark."""
        body = self.body
        masked = body.cast(body.constant(MASKED, float), FLOAT)
        return body.op("Softmax", body.op("Where", self._is_last(), masked, logits), axis=-1)

    def _is_last(self) -> ir.Value:
        """Which token of a block [b] is its last."""
        last = self.body.op("Sub", self.block, self.body.constant(1))
        return self.body.op("Equal", self.counted(self.block), last)

    # Reading

    def _gathered(self, cache: ir.Value, slots: ir.Value) -> ir.Value:
        """Rows [B,Hkv,N,D] of a cache in slots [B,Hkv,N]."""
        body = self.body
        return body.op(
            "GatherND", cache, body.op("Unsqueeze", slots, body.constant([3])), batch_dims=2
        )

    def _by_kv_head(self, slots: ir.Value) -> ir.Value:
        """[B,N] as [B,Hkv,N]."""
        body = self.body
        sizes = body.op("Concat", body.constant([1]), self.kv_heads(), body.constant([1]), axis=0)
        return body.op("Expand", body.op("Unsqueeze", slots, body.constant([1])), sizes)
