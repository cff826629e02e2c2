"""q, k, v and y of the attentions stay as projections write and read them: no node in front of an
attention brings heads before tokens, none behind it brings them back, none splits a packed one."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ctx_export.ops.spec import DOMAIN, Layout
from ctx_export.passes.operators import ATTENTION_NAMES
from ctx_export.passes.row_wise import RowWise, swap_later, swaps_heads, trace
from ctx_export.patterns.match import Miss, constant, describe, dimension, producer

_LOG = logging.getLogger(__name__)
_PARTS = ("q", "k", "v")
_LAST_AXES = (-1, 2)  # of [B,S,H·D]
_HEAD_AXES = (-3, 1)  # of [B,H,S,D]


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """q, k or v before its heads were brought in front of its tokens."""

    rows: RowWise  # from a swap of heads and tokens to q, k or v
    flat: ir.Value | None  # the same [B,S,H·D], None where there is no such value yet
    width: int  # H·D


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMajorAttention:
    """An attention between projections: what they give and the node that brings y's heads back."""

    node: ir.Node
    projections: tuple[Projection, ...]  # of q, k and v, or none where they are packed only
    packed: ir.Value | None  # [B,S,(Hq+2·Hkv)·D] that holds all three in order
    swap: ir.Node

    @property
    def layouts(self) -> set[Layout]:
        """What it can have."""
        apart = {Layout.TOKEN_MAJOR} if self.projections else set()
        return apart | ({Layout.PACKED} if self.packed is not None else set())


def keep_tokens_first(graph: ir.Graph) -> Layout:
    """Let the attentions of `graph` take what projections give, in place; returns their layout.
    Those of one operator share a body, so all do or none where one cannot."""
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type in ATTENTION_NAMES]
    found = [match(node) for node in nodes]
    sites = [site for site in found if isinstance(site, TokenMajorAttention)]
    if not sites or len(sites) < len(found):
        for miss in [site for site in found if isinstance(site, Miss)][:1]:
            _LOG.info("%s", miss)
        return Layout.HEAD_MAJOR
    common = set.intersection(*(site.layouts for site in sites))
    if not common:
        _LOG.info("some layers have one projection for q, k and v, others do not")
        return Layout.HEAD_MAJOR
    layout = max(common)
    made: dict[ir.Value, ir.Value] = {}
    for site in sites:
        _rewrite(graph, site, layout, made)
    return layout


def match(node: ir.Node) -> TokenMajorAttention | Miss:
    """Match an attention whose q, k and v [batch, head, token, dim] come from a swap of
    heads and tokens and whose y goes to one."""
    if "sink_q" in node.attributes["optional_inputs"].as_string().split(","):
        return _miss(node, 0, "a sink_q is given by head")
    projections: list[Projection] = []
    packed = _packed_heads(node)
    for name, value in zip(_PARTS, node.inputs, strict=False):
        projection = _projection(value, node) if packed is None and value is not None else None
        if projection is None and packed is None:
            reason = f"{name} is no [batch, token, head, dim] with heads brought first"
            return _miss(node, 1, f"{reason}, but {describe(value)}")
        projections += [] if projection is None else [projection]
    swap = _swap_of(node.outputs[0])
    if isinstance(swap, str):
        return _miss(node, 2, f"y is no result whose tokens are brought first, but {swap}")
    return TokenMajorAttention(
        node=node,
        projections=tuple(projections),
        packed=packed or _packed(projections),
        swap=swap,
    )


def _packed_heads(node: ir.Node) -> ir.Value | None:
    """The value [B,S,(Hq+2·Hkv)·D] whose heads, brought first, are split into q, k and v."""
    split = producer(node.inputs[0], "Split")
    if split is None or split.attributes.get_int("axis", 0) not in _HEAD_AXES:
        return None
    whole = split.inputs[0]
    if whole is None or list(split.outputs) != list(node.inputs[:3]):
        return None
    projection = _projection(whole, split)
    return projection.flat if projection is not None else None


def _projection(value: ir.Value, reader: ir.Node) -> Projection | None:
    """What `value` [B,H,S,D], which `reader` attends to, is a swap of."""
    rows, heads, dim = trace(value, reader), dimension(value, 1), dimension(value, 3)
    if rows is None or heads is None or dim is None:
        return None
    flat = None if rows.nodes else _flat(rows.swap.inputs[0], heads * dim)
    return Projection(rows=rows, flat=flat, width=heads * dim)


def _swap_of(y: ir.Value) -> ir.Node | str:
    """The one node that reads y [B,H,S,D], to bring tokens first, or what happens instead."""
    while True:
        users = [use.node for use in y.uses()]
        if len(users) != 1 or y.is_graph_output():
            return f"{y.name} has {len(users)} readers"
        (user,) = users
        if swaps_heads(user) and not user.outputs[0].is_graph_output():
            return user
        if not _keeps_shape(user):
            return f"goes to {user.op_type} ({user.outputs[0].name})"
        y = user.outputs[0]


def _keeps_shape(node: ir.Node) -> bool:
    """Whether a node reshapes its first input to the shape that it has."""
    value, made = node.inputs[0], node.outputs[0]
    if value is None or producer(made, "Reshape") is None:
        return False
    sizes = _sizes(value)
    return sizes is not None and sizes == _sizes(made)


def _flat(split: ir.Value | None, width: int) -> ir.Value | None:
    """The value [B,S,H·D] whose reshaping is `split` [B,S,H,D]."""
    reshape = producer(split, "Reshape")
    flat = reshape.inputs[0] if reshape is not None else None
    if reshape is None or flat is None or flat.shape is None or len(flat.shape) != 3:
        return None
    same = dimension(flat, 2) == width and _keeps_leading(reshape)
    return flat if same else None


def _keeps_leading(reshape: ir.Node) -> bool:
    """Whether the first two sizes stay as they are, by what is asked for or by their names."""
    asked = constant(reshape.inputs[1])
    if asked is not None and asked[:2].tolist() == [0, 0]:
        return not reshape.attributes.get_int("allowzero", 0)
    before, after = _sizes(reshape.inputs[0]), _sizes(reshape.outputs[0])
    return before is not None and after is not None and before[:2] == after[:2]


def _sizes(value: ir.Value | None) -> list[int | str] | None:
    """Sizes and names of sizes, where all are known."""
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def _packed(projections: Sequence[Projection]) -> ir.Value | None:
    """The value of which q, k and v are all, in this order."""
    parts = [_slice_of(projection.flat) for projection in projections]
    widths = [projection.width for projection in projections]
    begins = np.cumsum([0, *widths]).tolist()
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or any(one[0] is not other[0] for one, other in pairwise(found)):
        return None
    whole = found[0][0]
    exact = [begin for _, begin in found] == begins[:-1] and dimension(whole, 2) == begins[-1]
    return whole if exact else None


def _slice_of(flat: ir.Value | None) -> tuple[ir.Value, int] | None:
    """What `flat` is a part of, along the last of three axes, and where it begins there."""
    split, cut = producer(flat, "Split"), producer(flat, "Slice")
    if split is not None and split.inputs[0] is not None:
        axis = split.attributes.get_int("axis", 0)
        sizes = [dimension(out, 2) for out in split.outputs[: split.outputs.index(flat)]]
        if axis in _LAST_AXES and None not in sizes:
            return split.inputs[0], sum(size for size in sizes if size is not None)
    if cut is not None and cut.inputs[0] is not None and len(cut.inputs) >= 4:
        begin, along, *step = (_single(value) for value in (cut.inputs[1], *cut.inputs[3:]))
        if begin is not None and begin >= 0 and along in _LAST_AXES and step in ([], [1]):
            return cut.inputs[0], begin
    return None


def _single(value: ir.Value | None) -> int | None:
    array = constant(value)
    return int(array[0]) if array is not None and array.shape == (1,) else None


def _rewrite(
    graph: ir.Graph, site: TokenMajorAttention, layout: Layout, made: dict[ir.Value, ir.Value]
) -> None:
    """Connect the attention with its projections; nodes between them lose their uses. `made` has
    what [B,S,H,D] already is as [B,S,H·D]."""
    node = site.node
    node.attributes.add(ir.AttrInt64("layout", int(layout)))
    if layout == Layout.PACKED:
        given = [site.packed] * len(_PARTS)
    else:
        given = [part.flat or _flattened(graph, node, part, made) for part in site.projections]
    for index, value in enumerate(given):
        node.replace_input_with(index, value)
    _read_by_token(graph, site)


def _flattened(
    graph: ir.Graph, node: ir.Node, projection: Projection, made: dict[ir.Value, ir.Value]
) -> ir.Value:
    """A projection as [B,S,H·D], after what is computed on its heads."""
    rows = projection.rows
    split = rows.value if rows.nodes else rows.swap.inputs[0]
    assert split is not None
    if split not in made:
        swap_later(rows)
        made[split] = _reshaped(graph, node, split, (projection.width,))
    return made[split]


def _read_by_token(graph: ir.Graph, site: TokenMajorAttention) -> None:
    """y as [B,S,Hq·D], and what read it after its swap."""
    y, swapped = site.node.outputs[0], site.swap.outputs[0]
    assert y.shape is not None
    sizes = [size for axis in (1, 3) if (size := dimension(y, axis)) is not None]
    width = math.prod(sizes)
    y.shape = ir.Shape([y.shape[0], y.shape[2], width])
    by_head: ir.Value | None = None
    for use in list(swapped.uses()):
        reshapes = use.node.op_type == "Reshape" and use.idx == 0
        if reshapes and _flattens(use.node, width):
            ir.convenience.replace_all_uses_with(use.node.outputs[0], y)
            continue
        if reshapes and _copies_leading(use.node):
            use.node.replace_input_with(0, y)
            continue
        if by_head is None:
            by_head = _reshaped(graph, site.swap, y, sizes)
        use.node.replace_input_with(use.idx, by_head)


def _flattens(reshape: ir.Node, width: int) -> bool:
    """Whether [B,S,H,D] becomes [B,S,H·D]."""
    flat, asked = reshape.outputs[0], constant(reshape.inputs[1])
    if flat.is_graph_output() or not _keeps_leading(reshape):
        return False
    if asked is not None and asked[2:].tolist() in ([width], [-1]):
        return True
    return flat.shape is not None and len(flat.shape) == 3 and dimension(flat, 2) == width


def _copies_leading(reshape: ir.Node) -> bool:
    """Whether a reshaping asks for none of its input's sizes but the first two."""
    asked = constant(reshape.inputs[1])
    return asked is not None and 0 not in asked[2:].tolist()


def _reshaped(graph: ir.Graph, before: ir.Node, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
    """`value` with its first two sizes kept and the others as given, made just before a node."""
    shape = ir.node("Constant", [], {"value": ir.tensor(np.array([0, 0, *sizes], np.int64))})
    node = ir.node("Reshape", [value, shape.outputs[0]])
    made = node.outputs[0]
    assert value.shape is not None
    made.name, made.type = f"{value.name}.by_token", value.type
    made.shape = ir.Shape([*value.shape[:2], *sizes])
    graph.insert_before(before, [shape, node])
    return made


def _miss(node: ir.Node, depth: int, reason: str) -> Miss:
    return Miss(pattern="token-major attention", node=node.name or "", reason=reason, depth=depth)
