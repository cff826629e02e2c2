"""Where a traced decoder's tensors come from: the checkpoint's names for them, and the constants
that no file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ctx_export.frontends.checkpoint import Checkpoint
from ctx_export.frontends.shards import TensorLocation

if TYPE_CHECKING:
    import torch


def by_module_name(checkpoint: Checkpoint, decoder: Any) -> Checkpoint:
    """`checkpoint` with its tensors under the names that transformers' module has for them: some
    families' files keep older ones (gpt_neox: `embed_out` for `lm_head`)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(decoder)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    prefix = getattr(decoder, "base_model_prefix", None)
    stored = decoder.state_dict()
    tensors: Mapping[str, TensorLocation] = {
        rename_source_key(name, renamings, [], prefix, stored)[0]: location
        for name, location in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors)


def constants(decoder: Any) -> dict[str, torch.Tensor]:
    """Buffers of a decoder on the meta device that its checkpoint does not hold, by name, with the
    numbers that transformers gives them after loading."""
    import torch

    kept = decoder.state_dict()
    found: dict[str, torch.Tensor] = {}
    for path, module in decoder.named_modules():
        own = {
            name: buffer
            for name, buffer in module.named_buffers(prefix=path, recurse=False)
            if name not in kept and buffer.is_floating_point()
        }
        if not own:
            continue
        for name, buffer in own.items():
            empty = torch.full(buffer.shape, torch.nan, dtype=buffer.dtype, device="cpu")
            module.register_buffer(name.rpartition(".")[2], empty, persistent=False)
        with torch.no_grad():
            decoder._init_weights(module)
        filled = dict(module.named_buffers(prefix=path, recurse=False))
        found |= {name: filled[name] for name in own if not filled[name].isnan().any()}
    return found


def fill_constants(graph: ir.Graph, values: Mapping[str, torch.Tensor]) -> None:
    """Give the initializers of that name their numbers."""
    for name, tensor in values.items():
        value = graph.initializers.get(name)
        if value is not None and value.const_value is None and value.uses():
            array = tensor.float().numpy()
            held = ir.tensor(array, dtype=value.dtype, name=name)
            value.const_value = held
