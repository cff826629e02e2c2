"""Lowers the attention operators of com.microsoft to standard ones and ctx.source's one.

What stock onnxruntime runs and no pass needs to understand stays as it is (SimplifiedLayer-
Normalization, MatMulNBits, QMoE, FastGelu and their like).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from ctx_export.core.errors import UserError
from ctx_export.frontends.contrib_attention import (
    SOURCE_DOMAIN,
    lower_group_query_attention,
    lower_multi_head_attention,
)
from ctx_export.frontends.contrib_node import DOMAIN
from ctx_export.frontends.contrib_rotary import lower_rotary_embedding
from ctx_export.frontends.head_layout import cancel_layouts
from ctx_export.frontends.insertion import Insertion, names_of
from ctx_export.frontends.joined_heads import has_joined_heads, lower_joined_heads
from ctx_export.frontends.old_cache import drop_cache
from ctx_export.frontends.quantised_activations import drop_idle_pairs
from ctx_export.frontends.shapes import infer_shapes

_REFUSED = {
    "Attention": "it packs q, k and v and knows no grouped heads",
    "DecoderMaskedMultiHeadAttention": "it computes one token at a time",
    "DecoderMaskedSelfAttention": "it computes one token at a time",
    "DecoderAttention": "it belongs to an encoder-decoder",
    "GemmaRotaryEmbedding": "it takes sines of positions that are computed elsewhere",
    "LinearAttention": "it keeps a state in place of keys and values",
    "LongformerAttention": "its global tokens are another pattern than causal attention",
    "MRotaryEmbedding": "its positions have several axes",
    "PackedAttention": "it packs sequences of several lengths into one row",
    "PackedMultiHeadAttention": "it packs sequences of several lengths into one row",
    "PagedAttention": "it reads a cache of pages",
    "QAttention": "it packs quantised q, k and v",
    "QLinearSoftmax": "it weighs values with 8 bits; quantise in the QDQ format",
    "SparseAttention": "it leaves out blocks of keys",
}
_LOWERED: dict[str, Callable[[ir.Node, Insertion], ir.Value]] = {
    "GroupQueryAttention": lower_group_query_attention,
    "MultiHeadAttention": lower_multi_head_attention,
    "RotaryEmbedding": lower_rotary_embedding,
}


def lower(model: ir.Model) -> None:
    """Replace the attention operators of com.microsoft in `model` (opset 23), in place.

    Standard attention and rotation on [B,S,H·D] is brought to [B,H,S,D]. The old cache's outputs
    and inputs leave the computation, activations are rounded only in front of quantised weights,
    and a graph without an input `position_ids` [batch, tokens] is given one where a rotation
    needs it. Raises UserError with the node, the attribute, its value and the way out for what
    cannot be said otherwise.
    """
    graph = model.graph
    for node in graph.all_nodes():
        if node.domain == DOMAIN:
            _check(node, graph)
    drop_idle_pairs(graph)
    drop_cache(graph)
    taken = names_of(graph)
    for node in list(graph):
        infer_shapes(node)
        rewrite = _LOWERED.get(node.op_type) if node.domain == DOMAIN else None
        rewrite = lower_joined_heads if has_joined_heads(node) else rewrite
        if rewrite is not None:
            at = Insertion(graph=graph, before=node, taken=taken)
            at.replace(rewrite(node, at))
    cancel_layouts(graph)
    if any(node.domain == SOURCE_DOMAIN for node in graph):
        graph.opset_imports[SOURCE_DOMAIN] = 1
    ir_passes.RemoveUnusedNodesPass()(model)


def _check(node: ir.Node, graph: ir.Graph) -> None:
    reason = _REFUSED.get(node.op_type)
    if node.op_type in _LOWERED and node.graph is not graph:
        reason = "it stands in a branch of the graph"
    if reason is not None:
        raise UserError(
            f"{node.op_type} ({node.outputs[0].name}) of com.microsoft cannot be rewritten: "
            f"{reason}; export the model with GroupQueryAttention, MultiHeadAttention or plain "
            "operators"
        )
