"""A rewritten graph that is not what its plan promised; oracle: the one thing changed."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from ctx_export.core.plan import Plan, make_plan
from ctx_export.core.recipe import Recipe
from ctx_export.passes.rewrite import rewrite
from ctx_export.passes.verify import RewriteError, verify
from tests.support import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ir.Model, Plan]:
    """A graph over attention sinks and its plan."""
    checkpoint = tiny.save(tmp_path_factory.mktemp("verify") / "checkpoint")
    source = tiny.source(checkpoint)
    recipe = Recipe(model=str(checkpoint), method="streaming", sinks=2, window=30)
    plan = make_plan(source.spec, recipe)
    model = source.model.clone()
    rewrite(model, plan)
    return model, plan


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "SinkWindowAttention"]


def attribute(name: str, value: int) -> Callable[[ir.Model], None]:
    return lambda model: attentions(model)[1].attributes.add(ir.AttrInt64(name, value))


def rotation_before(model: ir.Model) -> None:
    """A rotation is left in front of an attention that rotates."""
    node = attentions(model)[0]
    seen, inv_freq, multiplier = node.inputs[5], *node.inputs[7:9]
    attributes = {"rotary_dim": tiny.HEAD_DIM, "interleaved": 0}
    inputs = [node.inputs[0], seen, inv_freq, multiplier]
    turned = ir.node("ScaledRotaryEmbedding", inputs, attributes, domain="ctx")
    model.graph.insert_before(node, turned)
    node.replace_input_with(0, turned.outputs[0])


def body_missing(model: ir.Model) -> None:
    model.functions.clear()


def old_attention(model: ir.Model) -> None:
    attentions(model)[0].domain = ""
    attentions(model)[0].op_type = "Attention"


def test_a_graph_as_planned_passes(made):
    model, plan = made
    verify(model, plan)
    assert [node.domain for node in model.graph if node.domain] == ["ctx"] * tiny.LAYERS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (attribute("rotation", 2), r"layer1.* sink position \(2, 31\), not \(.*1.*, 31\)"),
        (attribute("sink_position", 30), r"sink position \(1, 30\), not"),
        (attribute("rotation", 0), r"sink position \(0, 31\), not"),
        (attribute("layout", 0), r"layer1.* layout 0 and takes q, k and v as three .* \[3\] axes"),
        (attribute("layout", 2), r"layer1.* layout 2 and takes q, k and v as three values"),
        (rotation_before, "ctx nodes are .*'ScaledRotaryEmbedding': 1.* the plan has"),
        (body_missing, r"function bodies are \[\] for ctx nodes"),
        (old_attention, "old nodes are left after rewriting: Attention"),
    ],
)
def test_what_differs_from_the_plan_is_named(made, change, reason):
    model, plan = made
    broken = model.clone()
    change(broken)
    with pytest.raises(RewriteError, match=reason):
        verify(broken, plan)


def test_an_unfused_graph_has_its_rotations_counted(made):
    """The other form that a plan allows: every rotation a node of its own."""
    model, plan = made
    broken = model.clone()
    for node in attentions(broken):
        node.attributes.add(ir.AttrInt64("rotation", 0))
    with pytest.raises(RewriteError, match=r"the plan has .*'ScaledRotaryEmbedding': 6"):
        verify(broken, plan)
