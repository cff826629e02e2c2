"""Where a traced decoder's tensors come from: the checkpoint's names for them, and the constants
that no file holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ctx_export.core.errors import UserError
from ctx_export.frontends.checkpoint import Checkpoint
from ctx_export.frontends.shards import JoinedTensor, Tensor, TensorLocation

if TYPE_CHECKING:
    import torch


def by_module_name(checkpoint: Checkpoint, decoder: Any) -> Checkpoint:
    """`checkpoint` with its tensors under the names that transformers' module has for them: some
    families' files keep older ones (gpt_neox: `embed_out` for `lm_head`), or experts one by one.

    Raises UserError where an expert lacks a tensor that another has.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(decoder)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    prefix, stored = getattr(decoder, "base_model_prefix", None), decoder.state_dict()
    tensors: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[int, int, TensorLocation]]] = {}
    for name, location in checkpoint.tensors.items():
        assert isinstance(location, TensorLocation)
        target, pattern = rename_source_key(name, renamings, converters, prefix, stored)
        if pattern is None:
            tensors[target] = location
            continue
        converter = next(entry for entry in converters if pattern in entry.source_patterns)
        if not _stacks_experts(converter):
            continue  # missed by name later on, if the graph reads it
        expert = int(re.findall(r"\.(\d+)\.", name)[-1])
        order = converter.source_patterns.index(pattern)
        parts.setdefault(target, []).append((expert, order, location))
    tensors |= {target: _stacked(target, pieces) for target, pieces in parts.items()}
    return replace(checkpoint, tensors=tensors)


def _stacks_experts(converter: Any) -> bool:
    """Whether a conversion puts experts after one another, the parts of each side by side: then
    the bytes of the whole are those of the parts in that order."""
    steps = [
        (type(step).__name__, step.dim) for step in converter.operations if hasattr(step, "dim")
    ]
    stacked = [("MergeModulelist", 0)]
    return steps in (stacked, [*stacked, ("Concatenate", 1)])


def _stacked(name: str, pieces: list[tuple[int, int, TensorLocation]]) -> JoinedTensor:
    """[E,…] of the parts of E experts, given with expert and order; parts join on their axis 0."""
    ordered = sorted(pieces, key=lambda piece: piece[:2])
    experts = ordered[-1][0] + 1
    first = [location for expert, _, location in ordered if expert == 0]
    shape = (experts, sum(location.shape[0] for location in first), *first[0].shape[1:])
    complete = [piece[:2] for piece in ordered] == [
        (expert, order) for expert in range(experts) for order in range(len(first))
    ]
    if not complete or any(location.shape != first[order].shape for _, order, location in ordered):
        raise UserError(
            f"the checkpoint has {len(ordered)} tensors for {name} of {experts} experts, not "
            f"{len(first)} of one shape for each: it is incomplete"
        )
    return JoinedTensor(pieces=tuple(location for _, _, location in ordered), shape=shape)


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
            exact = array if value.dtype is None else array.astype(value.dtype.numpy())
            value.const_value = ir.tensor(exact, dtype=value.dtype, name=name)
