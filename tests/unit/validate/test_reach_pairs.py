"""The rules that reach behind a window, pair by pair in PyTorch; oracle: the operators' float64
references over a cache, which are written apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ctx_export.core.manifest import CacheInfo
from ctx_export.core.rules import DualChunk, Landmark, Memory, SelfExtend
from ctx_export.ops import reference_far as far
from ctx_export.runtime.slots import slots_in_use
from ctx_export.validate.pairwise import _attention_by
from ctx_export.validate.pairwise_attention import Cached, Scores
from ctx_export.validate.pairwise_landmark import LandmarkAttention
from ctx_export.validate.turning import Heads
from ctx_export.validate.visibility import rule_of

TOKENS, DIM, HEADS, KV_HEADS = 150, 8, 4, 2
SCALE, TOLERANCE = 0.4, 1e-12
INV_FREQ = np.array([1.0, 0.2, 0.03])  # six of eight dims turn


def drawn(seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    shapes = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
    return {name: generator.standard_normal((1, n, TOKENS, DIM)) for name, n in shapes.items()}


def cache(rule: Any, name: str, sinks: int = 0, window: int = 0) -> CacheInfo:
    capacity = TOKENS
    if isinstance(rule, Memory):
        capacity = rule.capacity(sinks, window, TOKENS)
    elif isinstance(rule, Landmark):
        capacity = rule.slots(sinks, TOKENS)
    return CacheInfo(
        policy="bounded" if isinstance(rule, Memory) else "full",
        rule=name,
        sinks=sinks,
        window=window,
        capacity=capacity,
        keys="unrotated",
        parameters=rule,
    )


def attended(info: CacheInfo, given: dict[str, Any], **how: Any) -> tuple[np.ndarray, Any]:
    rule = rule_of(info, TOKENS)
    heads = Heads(head_dim=DIM, count=len(INV_FREQ))
    attention = _attention_by(rule, lambda length: (INV_FREQ, 1.3), heads, None)
    q, k, v = (torch.from_numpy(given[name][0]) for name in "qkv")
    cached = Cached(keys=k, values=v, tokens=np.arange(TOKENS))
    out = attention.attend(q, cached, np.full(TOKENS, TOKENS), Scores(scaling=SCALE, **how))
    return out.numpy(), attention


def referred(case: type, function: Any, info: CacheInfo, given: dict[str, Any], **own: Any) -> Any:
    empty = np.zeros((1, KV_HEADS, info.capacity, DIM))
    made = case(
        **given,
        past_key=empty,
        past_value=empty,
        seen=np.array([0]),
        new=np.array([TOKENS]),
        sinks=info.sinks,
        window=info.window,
        scale=SCALE,
        bounded=False,
        rotary_dim=2 * len(INV_FREQ),
        inv_freq=INV_FREQ[None],
        multiplier=np.array([1.3]),
        **own,
    )
    return function(made), made


@pytest.mark.parametrize(("group", "neighbor"), [(1, 16), (7, 14), (16, 64), (64, 64)])
def test_self_extend(group, neighbor):
    given, info = drawn(), cache(SelfExtend(group=group, neighbor=neighbor), "self-extend")
    (y, *_), _ = referred(
        far.SelfExtendCase,
        far.self_extend_attention,
        info,
        given,
        group=group,
        neighbor=neighbor,
        softcap=2.0,
    )
    np.testing.assert_allclose(attended(info, given, softcap=2.0)[0], y[0], atol=TOLERANCE)


@pytest.mark.parametrize(("chunk", "reach"), [(1, 3), (7, 10), (16, 16), (64, 80)])
def test_dual_chunk(chunk, reach):
    given, info = drawn(), cache(DualChunk(chunk=chunk, reach=reach), "dual-chunk")
    (y, *_), _ = referred(
        far.DualChunkCase, far.dual_chunk_attention, info, given, chunk=chunk, reach=reach
    )
    np.testing.assert_allclose(attended(info, given)[0], y[0], atol=TOLERANCE)


@pytest.mark.parametrize("block", [1, 7, 16, 64])
@pytest.mark.parametrize(("sinks", "window", "memory"), [(0, 1, 3), (4, 9, 1), (4, 20, 100)])
def test_memory(block, sinks, window, memory):
    slots = memory + -(-TOKENS // block)
    rule = Memory(memory=memory, block=block, memory_slots=slots)
    given, info = drawn(), cache(rule, "memory", sinks, window)
    sink = np.linspace(-1, 1, HEADS).astype(np.float32)
    (y, *_), _ = referred(
        far.MemoryCase,
        far.memory_attention,
        info,
        given,
        memory=memory,
        block=block,
        memory_slots=slots,
        head_sink=sink,
    )
    out, _ = attended(info, given, sinks=torch.from_numpy(sink))
    np.testing.assert_allclose(out, y[0], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("block", "trained"),
    [(1, False), (7, False), (16, False), (64, False), (2, True), (7, True), (16, True)],
)
@pytest.mark.parametrize(("sinks", "window", "topk"), [(0, 1, 3), (4, 9, 1), (4, 20, 100)])
@pytest.mark.parametrize("shared", [False, True])
def test_landmark(block, sinks, window, topk, trained, shared):
    rule = Landmark(block=block, topk=topk, shared=shared, token=9 if trained else None)
    given, info = drawn(), cache(rule, "landmark", sinks, window)
    assert slots_in_use(TOKENS, info) <= info.capacity
    (y, *_), case = referred(
        far.LandmarkCase,
        far.landmark_attention,
        info,
        given,
        block=block,
        topk=topk,
        shared=shared,
        landmark=trained,
    )
    out, attention = attended(info, given)
    np.testing.assert_allclose(out, y[0], atol=TOLERANCE)
    assert isinstance(attention, LandmarkAttention)
    margins = far.landmark_margins(case)[0].min(axis=0)
    assert (np.isinf(margins) == np.isinf(attention.margins)).all()
    decided = np.isfinite(margins)
    assert (np.array(attention.margins)[decided] >= 0).all()
