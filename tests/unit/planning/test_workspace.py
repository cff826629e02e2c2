"""The formula against what the kernels' C interface answers."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from ctx_export.build.engine import plugin_library
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import BOUNDED, FULL, CacheInfo
from ctx_export.core.rules import DualChunk, Landmark, Memory, Rule, SelfExtend
from ctx_export.planning.workspace import CallShape, workspace_bytes
from tests.kernels.host_build import build
from tools.gpu.kernels import Kernels, parameters, struct

SIZES = (
    CallShape(batch=1, rows=1, heads=1, kv_heads=1, head_dim=8),
    CallShape(batch=1, rows=1, heads=64, kv_heads=8, head_dim=128),
    CallShape(batch=1, rows=1024, heads=32, kv_heads=32, head_dim=128),
    CallShape(batch=3, rows=7, heads=15, kv_heads=5, head_dim=64),
    CallShape(batch=2, rows=17, heads=20, kv_heads=1, head_dim=256),
    CallShape(batch=5, rows=400, heads=4, kv_heads=2, head_dim=80),
)
CAPACITIES = (1, 255, 511, 512, 513, 5119, 131072, 1 << 23)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """The installed library where there is one, else what the host builds of the same source."""
    try:
        return Kernels(plugin_library())
    except (UserError, OSError):
        return Kernels(build("ctx_kernels_host"))


def common(cache: CacheInfo, call: CallShape) -> dict[str, int]:
    return {
        "batch": call.batch,
        "queryHeads": call.heads,
        "kvHeads": call.kv_heads,
        "rows": call.rows,
        "capacity": cache.capacity,
        "headDim": call.head_dim,
        "dataType": 1,
    }


def asked(kernels: Kernels, cache: CacheInfo, call: CallShape) -> int:
    """What the library answers for the call that a plugin makes of a layer's attributes."""
    sizes = common(cache, call)
    near = {"sinks": cache.sinks, "window": cache.window}
    if cache.parameters is None:
        bounded = {"bounded": int(cache.policy == BOUNDED)}
        return kernels.workspace(
            parameters("CtxSinkWindowAttentionParams", **sizes, **near, **bounded)
        )
    inner: Any = struct("CtxAttentionCall")(**sizes)
    match cache.parameters:
        case SelfExtend(group=group, neighbor=neighbor):
            name, own = "SelfExtend", {"group": group, "neighbor": neighbor}
        case DualChunk(chunk=chunk, reach=reach):
            name, own = "DualChunk", {"chunk": chunk, "reach": reach}
        case Memory(memory=memory, block=block, memory_slots=slots):
            name, own = "Memory", {**near, "memory": memory, "block": block, "memorySlots": slots}
        case Landmark(block=block, topk=topk, shared=shared, token=token):
            grouped = {"shared": int(shared), "landmark": int(token is not None)}
            name, own = "Landmark", {**near, "block": block, "topk": topk, **grouped}
    return kernels.workspace(parameters(f"Ctx{name}AttentionParams", call=inner, **own))


def caches(capacity: int) -> list[CacheInfo]:
    def made(sinks: int = 0, window: int = 0, rule: Rule | None = None) -> CacheInfo:
        full = not window or isinstance(rule, Landmark)
        return CacheInfo(
            policy=FULL if full else BOUNDED,
            sinks=sinks,
            window=window,
            capacity=capacity,
            keys="unrotated",
            parameters=rule,
        )

    plain = [made(), made(0, 128), made(4, 1020), made(4, 1 << 20)]
    parts = [
        made(rule=SelfExtend(group=4, neighbor=64)),
        made(rule=DualChunk(chunk=48, reach=64)),
        made(4, 300, Memory(memory=16, block=16, memory_slots=80)),
    ]
    blocks = [
        made(sinks, window, Landmark(block=block, topk=topk, shared=shared, token=token))
        for (sinks, window), (block, topk), shared, token in product(
            ((4, 1917), (0, 1)), ((64, 32), (3, 5), (2, 1 << 12)), (False, True), (None, 7)
        )
    ]
    return plain + parts + blocks


@pytest.mark.parametrize("call", SIZES, ids=str)
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_the_formula_is_the_kernels(kernels: Kernels, call: CallShape, capacity: int) -> None:
    some = 0
    for cache in caches(capacity):
        expected = asked(kernels, cache, call)
        assert workspace_bytes(cache, call) == expected, cache
        some += expected
    assert some  # landmark always asks for some


@pytest.mark.parametrize(
    ("call", "capacity"),
    [
        # A cache of more than 2^37 elements: 8 heads of 128 over 2^27 + 1 slots.
        (CallShape(batch=1, rows=1, heads=64, kv_heads=8, head_dim=128), (1 << 27) + 1),
        (CallShape(batch=1, rows=1, heads=1, kv_heads=1, head_dim=8), 1 << 31),
        # Queries of more: 64 heads of 128 over 2^25 rows.
        (CallShape(batch=1, rows=1 << 25, heads=64, kv_heads=8, head_dim=128), 4096),
    ],
)
def test_sizes_out_of_range_ask_for_what_the_kernels_say(
    kernels: Kernels, call: CallShape, capacity: int
) -> None:
    answers = []
    for cache in caches(capacity):
        answers.append(asked(kernels, cache, call))
        assert workspace_bytes(cache, call) == answers[-1], cache
    assert 0 in answers
    assert not call.fits(capacity)


def test_the_kernels_refuse_what_does_not_fit(kernels: Kernels) -> None:
    """The launch itself; a call without rows has nothing else to check."""
    call = CallShape(batch=1, rows=0, heads=64, kv_heads=8, head_dim=128)
    for capacity, fits in ((1 << 27, True), ((1 << 27) + 1, False)):
        (cache, *_) = caches(capacity)
        given = parameters("CtxSinkWindowAttentionParams", **common(cache, call))
        _, message = kernels.status("ctxSinkWindowAttention", given)
        assert ("sizes must not be negative" in message) != fits
        assert call.fits(capacity) == fits
