"""Other attentions on the same tensors: torch's SDPA, FlexAttention, FlashInfer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tools.gpu.check import Expected, Problem
from tools.gpu.compare import NotAvailable, Prepare, Prepared

if TYPE_CHECKING:
    from torch import Tensor

FLASH, CUDNN = "SDPA flash", "SDPA cuDNN"
FLEX, FLASHINFER = "FlexAttention", "FlashInfer"
_BACKENDS = {FLASH: "FLASH_ATTENTION", CUDNN: "CUDNN_ATTENTION"}
_FLEX_BLOCK = 128
_WORKSPACE_BYTES = 128 << 20  # FlashInfer's recommendation
Find = Callable[[], Expected]


def prepare(name: str, problem: Problem, expected: Find) -> Prepare:
    """The side `name` on `problem`; `expected` is asked for when the side is prepared."""
    makers: dict[str, Callable[[Problem], Prepared]] = {
        FLASH: partial(_sdpa, FLASH, expected),
        CUDNN: partial(_sdpa, CUDNN, expected),
        FLEX: partial(_flex, expected),
        FLASHINFER: partial(_flashinfer, expected),
    }
    return partial(makers[name], problem)


def _sdpa(name: str, expected: Find, problem: Problem) -> Prepared:
    """Heads of a group share keys where the back end can; else keys are repeated beforehand."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if problem.window:
        raise NotAvailable("has no sliding window")
    backend = getattr(SDPBackend, _BACKENDS[name])
    attention = torch.nn.functional.scaled_dot_product_attention
    mask = _lower_right(problem)
    causal = problem.rows == problem.keys and problem.rows > 1

    def run(key: Tensor, value: Tensor, gqa: bool) -> Any:
        with sdpa_kernel(backend):
            return attention(
                problem.query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=gqa
            )

    shared = partial(run, problem.key, problem.value, problem.groups > 1)
    try:
        shared()
    except RuntimeError as error:
        if problem.groups == 1:
            raise NotAvailable(_reason(error)) from None
    else:
        return Prepared(run=shared, output=_same, expected=expected())
    repeated = [x.repeat_interleave(problem.groups, 1) for x in (problem.key, problem.value)]
    alone = partial(run, repeated[0], repeated[1], False)
    try:
        alone()
    except RuntimeError as error:
        raise NotAvailable(_reason(error)) from None
    return Prepared(run=alone, output=_same, expected=expected(), note="keys repeated for heads")


def _lower_right(problem: Problem) -> Any:
    """The causal mask of several rows at the end of more keys; one row sees all of them."""
    if problem.rows in (1, problem.keys):
        return None
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(problem.rows, problem.keys)


def _flex(expected: Find, problem: Problem) -> Prepared:
    run = partial(
        _flex_function(problem.query.device.type),
        problem.query,
        problem.key,
        problem.value,
        block_mask=block_mask(problem),
        enable_gqa=problem.groups > 1,
    )
    return Prepared(run=run, output=_same, expected=expected())


@cache
def _flex_function(device: str) -> Any:
    """Compiled where it is measured; static shapes give it its fastest kernels."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu":
        return flex_attention
    torch._dynamo.config.recompile_limit = 256
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def block_mask(problem: Problem) -> Any:
    """FlexAttention's mask of a problem: which blocks are visible in whole and in part is counted
    from the positions, without a matrix of all pairs."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    sinks, window, offset = problem.sinks, problem.window, problem.keys - problem.rows
    device = problem.query.device
    row = torch.arange(0, problem.rows, _FLEX_BLOCK, device=device)[:, None]
    first_row, last_row = row + offset, (row + _FLEX_BLOCK).clamp(max=problem.rows) - 1 + offset
    first_key = torch.arange(0, problem.keys, _FLEX_BLOCK, device=device)[None]
    last_key = (first_key + _FLEX_BLOCK).clamp(max=problem.keys) - 1
    some, whole = first_key <= last_row, last_key <= first_row
    if window:
        some &= ((first_row - last_key).clamp(min=0) < window) | (first_key < sinks)
        whole &= (last_row - first_key < window) | (last_key < sinks)
    # Blocks that reach past an end are never whole.
    whole &= (row + _FLEX_BLOCK <= problem.rows) & (first_key + _FLEX_BLOCK <= problem.keys)

    def visible(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        distance = row + offset - key
        seen = distance >= 0
        return seen & ((distance < window) | (key < sinks)) if window else seen

    return BlockMask.from_kv_blocks(
        *_ordered(some & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=_FLEX_BLOCK,
        mask_mod=visible,
        seq_lengths=(problem.rows, problem.keys),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen blocks of each row and their indices first, [1,1,R] and [1,1,R,C]."""
    import torch

    order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], order.int()[None, None]


def _flashinfer(expected: Find, problem: Problem) -> Prepared:
    if find_spec("flashinfer") is None:
        raise NotAvailable("flashinfer is not installed")
    if problem.window:
        raise NotAvailable("has no sinks beside a window")
    if problem.rows == 1:
        return _flashinfer_decode(expected, problem)
    if problem.rows == problem.keys:
        return _flashinfer_prefill(expected, problem)
    raise NotAvailable("is measured in prefill and in steps of one token")


def _flashinfer_prefill(expected: Find, problem: Problem) -> Prepared:
    """Ragged: sequences one after the other, tokens before heads."""
    import flashinfer
    import torch

    batch, heads, rows, dim = problem.query.shape
    tokens = [_tokens_first(x) for x in (problem.query, problem.key, problem.value)]
    starts = torch.arange(batch + 1, dtype=torch.int32, device=problem.query.device) * rows
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(_workspace(problem), "NHD")
    wrapper.plan(
        starts,
        starts,
        heads,
        problem.key.shape[1],
        dim,
        causal=True,
        q_data_type=problem.query.dtype,
    )

    def output(found: Tensor) -> Tensor:
        return found.reshape(batch, rows, heads, dim).transpose(1, 2)

    return Prepared(run=partial(wrapper.run, *tokens), output=output, expected=expected())


def _flashinfer_decode(expected: Find, problem: Problem) -> Prepared:
    """Each sequence's cache is one page, heads before tokens, where it lies."""
    import flashinfer
    import torch

    batch, heads, _, dim = problem.query.shape
    pages = torch.arange(batch + 1, dtype=torch.int32, device=problem.query.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        _workspace(problem), "HND", use_tensor_cores=problem.groups >= 4
    )
    wrapper.plan(
        pages,
        pages[:-1],
        torch.full_like(pages[:-1], problem.keys),
        heads,
        problem.key.shape[1],
        dim,
        problem.keys,
        q_data_type=problem.query.dtype,
        kv_data_type=problem.key.dtype,
    )

    def output(found: Tensor) -> Tensor:
        return found[:, :, None]

    query = problem.query[:, :, 0].contiguous()
    run = partial(wrapper.run, query, (problem.key, problem.value))
    return Prepared(run=run, output=output, expected=expected())


def _workspace(problem: Problem) -> Tensor:
    import torch

    return torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=problem.query.device)


def _tokens_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3]).contiguous()


def _same(found: Any) -> Any:
    return found


def _reason(error: RuntimeError) -> str:
    return f"refuses: {str(error).splitlines()[0]}"[:300]
