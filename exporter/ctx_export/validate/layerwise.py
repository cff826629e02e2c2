"""A reference that holds one decoder layer's weights at a time.

transformers' own model is made without memory; each decoder layer reads its weights from the
checkpoint's safetensors files just before it runs and drops them just after. Everything else,
masks and caches included, is transformers' forward as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.frontends.attention_backend import attention_backend, decoder_layers
from ctx_export.frontends.shards import read_shards
from ctx_export.validate import torch_reference as reference
from ctx_export.validate.older_attention import ROWS


class _Shards:
    """Tensors of a checkpoint by name, read on demand and rounded to a precision."""

    def __init__(self, checkpoint: Path, weights: str, compute: str) -> None:
        from safetensors import safe_open

        self._precisions = (weights, compute)
        # The index decides: some checkpoints have other files with the same tensors beside it.
        places = {name: place.file for name, place in read_shards(checkpoint).items()}
        opened = {file: safe_open(str(file), framework="pt") for file in set(places.values())}
        self._files = {name: opened[file] for name, file in places.items()}

    def read(self, name: str) -> Any:
        import torch

        tensor = self._files[name].get_tensor(name)
        for precision in self._precisions:
            tensor = tensor.to(getattr(torch, reference.TORCH_TYPES[precision]))
        return tensor

    def check(self, names: Mapping[str, str]) -> None:
        """Raise UserError unless the checkpoint has all that `of` would read."""
        missing = [stored for stored in names.values() if stored not in self._files]
        if missing:
            raise UserError(
                f"the checkpoint has no tensor {missing[0]}: a model that transformers converts "
                "while loading cannot be compared layer by layer; it must fit into memory"
            )

    def of(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Tensors by the module's name for them; `names` maps those to the checkpoint's."""
        return {name: self.read(stored) for name, stored in names.items()}


def load_by_layer(checkpoint: Path, config: Any, weights: str, compute: str) -> Any:
    """The model of `checkpoint` with everything but the decoder layers in memory."""
    import torch
    from transformers import AutoModelForCausalLM

    shards = _Shards(checkpoint, weights, compute)
    dtype = getattr(torch, reference.TORCH_TYPES[compute])
    with reference.quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            reference.without_scaling(config),
            dtype=dtype,
            attn_implementation=attention_backend(config),
        )
    prefix, layers = decoder_layers(model)
    outside = _outside(model, prefix)
    shards.check(outside)
    model.load_state_dict(shards.of(outside), assign=True, strict=False)
    model.tie_weights()
    _check_buffers(model)
    for index, layer in enumerate(layers):
        _stream(layer, f"{prefix}.{index}.", shards)
    return model.eval()


def _check_buffers(model: Any) -> None:
    """Raise UserError where the model has constants that no file holds; rotations are replaced."""
    for name, buffer in model.named_buffers():
        if buffer.is_meta and "rotary_emb" not in name and not name.endswith(ROWS):
            raise UserError(
                f"the checkpoint does not hold the reference's constant {name}: it cannot be "
                "compared layer by layer; it must fit into memory"
            )


def _outside(model: Any, prefix: str) -> dict[str, str]:
    """Names of the weights that belong to no layer; a tied projection is the embedding's."""
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    kept = [n for n in names if not n.startswith(f"{prefix}.") and n not in tied]
    return dict(zip(kept, kept, strict=True))


def _stream(layer: Any, prefix: str, shards: _Shards) -> None:
    """Give `layer` its weights before each forward and take them after it."""
    names = {name: prefix + name for name, _ in layer.named_parameters()}
    shards.check(names)

    def load(module: Any, arguments: Any) -> None:
        module.load_state_dict(shards.of(names), assign=True)

    def drop(module: Any, arguments: Any, output: Any) -> None:
        module.to("meta")

    layer.register_forward_pre_hook(load)
    layer.register_forward_hook(drop)
