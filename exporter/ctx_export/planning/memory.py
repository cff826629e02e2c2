"""Memory that a package needs: weights, caches, the plugins' workspace, and an estimate of the
activations."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.core.cache_type import ELEMENT_BYTES
from ctx_export.core.plan import DTYPE_OF, Plan
from ctx_export.planning.kv_cache import KvCache, kv_cache
from ctx_export.planning.parameters import Parameters
from ctx_export.planning.weights import Weights
from ctx_export.planning.workspace import CallShape, workspace_bytes

# A session of an engine has an execution context for prefill and one for decoding, and TensorRT
# gives each the memory of the largest call of any profile.
CONTEXTS = 2
ACTIVATIONS = (
    "estimate: for each execution context max_batch · max_chunk tokens · the numbers of one token "
    "that are there at once in the widest part of a layer (2·hidden + 2·(heads + KV heads)·"
    "head_dim, or 2·hidden + the MLP's projections, of all experts where there are such) + "
    "max_batch · vocabulary logits, in the precision's bytes"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes for `batch` sequences at capacity. All but `activations` are exact."""

    weights: int
    sequence: int  # caches of one sequence
    caches: int  # of all
    workspace: int  # the most that any plugin layer asks for
    contexts: int
    activations: int  # an estimate, of one context
    growing: int  # of a cache tensor that exists twice while it grows, at most
    possible: bool  # False: the kernels take no tensors of these sizes

    @property
    def exact(self) -> int:
        """Weights, caches and the workspace of every context."""
        return self.weights + self.caches + self.contexts * self.workspace

    @property
    def needed(self) -> int:
        """With the estimate, and the cache tensor that grows."""
        return self.exact + self.contexts * self.activations + self.growing


def memory(plan: Plan, parameters: Parameters, weights: Weights, batch: int) -> Memory:
    """Memory of a package of `plan` for `batch` sequences at once."""
    kv, call = kv_cache(plan), largest_call(plan, batch)
    element = ELEMENT_BYTES[DTYPE_OF[plan.precision]]
    numbers = plan.max_chunk * parameters.widest + plan.spec.vocab
    return Memory(
        weights=weights.bytes,
        sequence=kv.sequence_bytes,
        caches=batch * kv.sequence_bytes,
        workspace=max(layer_workspaces(kv, call)),
        contexts=CONTEXTS,
        activations=batch * numbers * element,
        growing=batch * kv.largest_growing,
        possible=all(call.fits(kind.cache.capacity) for kind in kv.kinds),
    )


def largest_call(plan: Plan, batch: int) -> CallShape:
    """The largest call of a plugin layer in a package of `plan` for `batch` sequences."""
    return CallShape(
        batch=batch,
        rows=plan.max_chunk,
        heads=plan.spec.heads,
        kv_heads=plan.spec.kv_heads,
        head_dim=plan.spec.head_dim,
    )


def layer_workspaces(kv: KvCache, call: CallShape) -> list[int]:
    """Workspace of one layer of each kind. Layers run one after another: TensorRT gives them the
    same memory."""
    return [workspace_bytes(kind.cache, call) for kind in kv.kinds]
