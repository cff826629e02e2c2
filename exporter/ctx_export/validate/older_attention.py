"""Families that transformers computes in ways of their own, made to look like the others.

falcon calls PyTorch's attention itself. gptj and codegen compute theirs in `_attn`, and turn by
rows of sines and cosines that every layer holds, with no settings for scaling them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

ROWS = "embed_positions"  # the buffer of sines and cosines
_ROWS_FAMILIES = ("gptj", "codegen")

Attend = Callable[[Any, Any, Any, float], Any]  # q, k and v [1,H,N,D] and the scale


def has_rows(config: Any) -> bool:
    """Whether models of `config` turn by rows of sines and cosines."""
    return getattr(config, "model_type", None) in _ROWS_FAMILIES


def state_rope(config: Any) -> None:
    """Give a config of such a family the rotary settings that it takes for granted."""
    config.head_dim = config.hidden_size // config.num_attention_heads
    share = config.rotary_dim / config.head_dim
    plain = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}
    config.rope_parameters = plain


def rotary_of_rows(model: Any, layers: Any) -> Any:
    """An owner of `rotary_emb` for such a model: the layers' rows are its sines and cosines."""
    owner = SimpleNamespace(rotary_emb=rotary_class()(model.config), layers=layers)

    def turn(module: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        import torch

        hidden = args[0] if args else options["hidden_states"]
        cos, sin = owner.rotary_emb(hidden, options["position_ids"][:1])
        setattr(module, ROWS, torch.cat([sin[0], cos[0]], dim=-1))
        rows = torch.arange(hidden.shape[1]).expand(hidden.shape[0], -1)
        return args, {**options, "position_ids": rows}

    for layer in layers:
        layer.attn.register_forward_pre_hook(turn, with_kwargs=True)
    return owner


def rotary_class() -> type:
    """A rotary module like those of other families; one angle serves both dims of a pair."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    class RowsRotaryEmbedding(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config, rope = config, config.rope_parameters
            dims = torch.arange(0, config.rotary_dim, 2)
            table, self.attention_scaling = rope["rope_theta"] ** (-dims / config.rotary_dim), 1.0
            if rope["rope_type"] not in ("default", "dynamic"):
                make = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
                table, self.attention_scaling = make(config, "cpu")
            self.register_buffer("inv_freq", table, persistent=False)
            self.register_buffer("original_inv_freq", table.clone(), persistent=False)

        def forward(self, x: Any, position_ids: Any) -> tuple[Any, Any]:
            angle = position_ids[..., None].float() * self.inv_freq
            cos, sin = (part * self.attention_scaling for part in (angle.cos(), angle.sin()))
            return cos.to(x.dtype), sin.to(x.dtype)

    return RowsRotaryEmbedding


def replace_attention(attention: Any, attend: Attend) -> bool:
    """Let `attend` take the place of what an attention module of these families computes from
    rotated queries and keys; returns whether it is of one."""
    if hasattr(attention, "_attn") and hasattr(attention, "scale_attn"):
        scale = 1.0 / float(attention.scale_attn)
        attention._attn = lambda q, k, v, mask=None: (attend(q, k, v, scale), None)
        return True
    if type(attention).__module__.endswith("modeling_falcon"):
        attention.forward = _intercepted(attention.forward, attend)
        return True
    return False


def _intercepted(forward: Callable[..., Any], attend: Attend) -> Callable[..., Any]:
    """`forward` with `attend` for PyTorch's scaled_dot_product_attention."""
    import torch
    from torch.overrides import TorchFunctionMode

    class _Instead(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function is torch.nn.functional.scaled_dot_product_attention:
                scale = float(args[0].shape[-1]) ** -0.5
                return attend(args[0], args[1], args[2], scale)
            return function(*args, **(kwargs or {}))

    def intercepted(*args: Any, **options: Any) -> Any:
        with _Instead():
            return forward(*args, **options)

    return intercepted


def per_head(key: Any, kv_heads: int) -> Any:
    """`key` [...,H,N,D] once a KV head: falcon repeats its keys before they are rotated."""
    return key[..., :: key.shape[-3] // kv_heads, :, :]


def cached_groups(config: Any, kv_heads: int) -> int:
    """How often transformers' cache of a model of `config` holds every KV head."""
    repeats = config.model_type == "falcon" and config.new_decoder_architecture
    return int(config.num_attention_heads) // kv_heads if repeats else 1
