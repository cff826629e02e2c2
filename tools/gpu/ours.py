"""Our kernels on torch tensors: the C call of an attention or a rotation, ready to be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tools.gpu.compare import NotAvailable
from tools.gpu.kernels import CACHE_TYPES, DATA_TYPES, KernelError, Kernels, parameters

if TYPE_CHECKING:
    from torch import Tensor

Launch = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Frequencies [1,F] in radians per token and multipliers [1], float32."""

    inverse_frequency: Tensor
    multiplier: Tensor
    interleaved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A cache of one byte an element; scales [Hkv] in float32."""

    cache_type: str  # float8, int8
    key_scale: Tensor
    value_scale: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """SinkWindowAttention with present in past's memory: query, output and sink_query [B,Hq,S,D],
    key and value [B,Hkv,S,D], caches [B,Hkv,C,D], seen and new [B] int64.

    With `rotary` the call rotates query and key itself, the key before it is cached.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    key_cache: Tensor
    value_cache: Tensor
    seen: Tensor
    new: Tensor
    output: Tensor
    sinks: int = 0
    window: int = 0
    bounded: bool = False
    sink_query: Tensor | None = None
    rotary: Rotary | None = None
    rotation: int = 0  # CtxRotation
    quantised: Quantised | None = None

    def bind(self, kernels: Kernels) -> Launch:
        """A call on torch's current stream, with the workspace it asks for.

        Raises NotAvailable where the library is older than what is asked of it.
        """
        if (self.rotary or self.quantised) and not kernels.has_workspace:
            raise NotAvailable("the library is older than rotation and caches of this kind")
        params = self._parameters()
        workspace = _workspace(kernels, params, self.query)
        launch = _launcher(kernels, "ctxSinkWindowAttention", params, self.query.device.type)
        # The struct has only addresses of what these hold.
        return partial(_launch, launch, (self, workspace), bool(self.rotary or self.quantised))

    def _parameters(self) -> Any:
        batch, heads, rows, dim = self.query.shape
        return parameters(
            "CtxSinkWindowAttentionParams",
            query=_pointer(self.query),
            key=_pointer(self.key),
            value=_pointer(self.value),
            pastKey=_pointer(self.key_cache),
            pastValue=_pointer(self.value_cache),
            seen=_pointer(self.seen),
            newTokens=_pointer(self.new),
            sinkQuery=_pointer(self.sink_query),
            output=_pointer(self.output),
            presentKey=_pointer(self.key_cache),
            presentValue=_pointer(self.value_cache),
            batch=batch,
            queryHeads=heads,
            kvHeads=self.key_cache.shape[1],
            rows=rows,
            capacity=self.key_cache.shape[2],
            headDim=dim,
            sinks=self.sinks,
            window=self.window,
            scale=dim**-0.5,
            bounded=int(self.bounded),
            dataType=data_type(self.query),
            rotation=self.rotation,
            **_rotary_fields(self.rotary),
            **_cache_fields(self.quantised),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """ScaledRotaryEmbedding: x and y [B,H,S,D], positions [B,S] int64."""

    x: Tensor
    positions: Tensor
    y: Tensor
    rotary: Rotary

    def bind(self, kernels: Kernels) -> Launch:
        """A call on torch's current stream."""
        batch, heads, rows, dim = self.x.shape
        params = parameters(
            "CtxScaledRotaryEmbeddingParams",
            x=_pointer(self.x),
            positions=_pointer(self.positions),
            y=_pointer(self.y),
            batch=batch,
            heads=heads,
            rows=rows,
            headDim=dim,
            dataType=data_type(self.x),
            **_rotary_fields(self.rotary),
        )
        launch = _launcher(kernels, "ctxScaledRotaryEmbedding", params, self.x.device.type)
        return partial(_launch, launch, self, False)


def data_type(tensor: Tensor) -> int:
    """CtxDataType of a tensor."""
    return DATA_TYPES[str(tensor.dtype).removeprefix("torch.")]


def stream_of(device: str) -> int | None:
    """Address of torch's current stream; the host execution has none."""
    import torch

    return int(torch.cuda.current_stream().cuda_stream) if device == "cuda" else None


def _launcher(kernels: Kernels, function: str, params: Any, device: str) -> Launch:
    return lambda: kernels.launch(function, params, stream_of(device))


def _launch(launch: Launch, _held: Any, optional: bool) -> None:
    """`optional`: what the library refuses is a feature that it does not have."""
    try:
        launch()
    except KernelError as error:
        if optional:
            raise NotAvailable(f"refused: {error}") from None
        raise


def _workspace(kernels: Kernels, params: Any, beside: Tensor) -> Tensor | None:
    import torch

    size = kernels.workspace(params)
    if size == 0:
        return None
    workspace = torch.empty(size, dtype=torch.uint8, device=beside.device)
    params.workspace, params.workspaceBytes = workspace.data_ptr(), size
    return workspace


def _rotary_fields(rotary: Rotary | None) -> dict[str, Any]:
    if rotary is None:
        return {"frequencyBatch": 1, "multiplierBatch": 1}
    return {
        "inverseFrequency": _pointer(rotary.inverse_frequency),
        "multiplier": _pointer(rotary.multiplier),
        "rotaryDim": 2 * rotary.inverse_frequency.shape[1],
        "frequencyBatch": rotary.inverse_frequency.shape[0],
        "multiplierBatch": rotary.multiplier.shape[0],
        "interleaved": int(rotary.interleaved),
    }


def _cache_fields(quantised: Quantised | None) -> dict[str, Any]:
    if quantised is None:
        return {}
    return {
        "cacheType": CACHE_TYPES[quantised.cache_type],
        "keyScale": _pointer(quantised.key_scale),
        "valueScale": _pointer(quantised.value_scale),
    }


def _pointer(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of {tuple(tensor.shape)} has gaps: make it contiguous")
    return int(tensor.data_ptr())
