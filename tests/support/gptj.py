"""gptj in transformers knows no scaling: the rows of its buffers are written here, from the
frequencies of transformers' own functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.families import ORIGINAL_CONTEXT, THETA, load_config, load_model


def model(checkpoint: Path, settings: dict[str, Any], rows: int, length: int) -> Any:
    """transformers' model with `rows` positions in its buffers, turned by `settings` in Hugging
    Face's keys; `length`: tokens of the text, for the types that follow it."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = load_config(checkpoint, n_positions=rows)
    rope = {"rope_theta": THETA, **settings}
    if rope["rope_type"] == "default":  # it has no entry there: every model has its own
        rope = {**rope, "rope_type": "linear", "factor": 1.0}
    turning = LlamaConfig(
        head_dim=config.rotary_dim,
        max_position_embeddings=ORIGINAL_CONTEXT,
        rope_parameters=rope,
    )
    make = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
    table, multiplier = make(turning, "cpu", seq_len=length)
    angle = torch.arange(rows)[:, None].double() * table.double()
    values = torch.cat([angle.sin(), angle.cos()], dim=1) * multiplier
    loaded = load_model(checkpoint, config)
    for layer in loaded.transformer.h:
        layer.attn.embed_positions.copy_(values)
    return loaded
