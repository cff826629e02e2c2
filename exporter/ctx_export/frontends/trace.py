"""A checkpoint traced by PyTorch without its weights: one layer of each kind, then repeated."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ctx_export.core.errors import UserError
from ctx_export.frontends.attention_backend import attention_backend, decoder_layers
from ctx_export.frontends.checkpoint import Checkpoint
from ctx_export.frontends.experts import use_every_expert
from ctx_export.frontends.layer_kinds import keep_one_of_each, stated_kinds
from ctx_export.frontends.repeat import repeat_layers
from ctx_export.frontends.shards import Tensor
from ctx_export.frontends.source import Source
from ctx_export.frontends.tensors import by_module_name, constants, fill_constants
from ctx_export.frontends.traceable import traceable
from ctx_export.ops.builder import OPSET

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_WRAPPER_PREFIX = "model."  # the traced module holds the decoder as `.model`


def trace(checkpoint: Checkpoint, precision: str | None = None) -> Source:
    """Trace `checkpoint` at `precision` (default: its own) on PyTorch's meta device.

    Time and memory do not depend on the weights and hardly on the number of layers. Raises
    UserError where transformers cannot build the model, PyTorch cannot export it, or a tensor is
    missing in the checkpoint or has another shape than the model's.
    """
    precision = precision or checkpoint.spec.precision
    decoder = _meta_decoder(checkpoint, precision)
    kinds = keep_one_of_each(decoder, stated_kinds(checkpoint))
    checkpoint = by_module_name(checkpoint, decoder)
    model = _export(decoder)
    prefix, _ = decoder_layers(decoder)
    simplify(model)
    fill_constants(model.graph, constants(decoder))
    repeat_layers(model.graph, prefix=prefix, kinds=kinds)
    weights = _match_weights(model.graph, checkpoint, decoder)
    return Source(
        model=model,
        spec=checkpoint.spec,
        precision=precision,
        checkpoint=checkpoint,
        weights=weights,
    )


def _meta_decoder(checkpoint: Checkpoint, precision: str) -> torch.nn.Module:
    """transformers' own model on the meta device, with plain RoPE: the rotation is rewritten
    afterwards, so its scaling must not shape the trace."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=False)
        _check_windows(config, checkpoint)
        _check_bases(config, checkpoint)
        _plain_rope(config)
        config._attn_implementation = attention_backend(config)
        use_every_expert(config)
        config.use_cache = False
        with torch.device("meta"):
            decoder: torch.nn.Module = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, _TORCH_NAMES[precision]), trust_remote_code=False
            )
    except (ValueError, KeyError, ImportError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"transformers cannot build a {checkpoint.spec.family} decoder from "
            f"{checkpoint.directory}: {reason}"
        ) from None
    return decoder.eval()


def _check_windows(config: Any, checkpoint: Checkpoint) -> None:
    """The traced masks are replaced by the windows that config.json states. transformers fills in
    what it leaves out, differently per family: both must come to the same windows."""
    kind, layers = type(config), checkpoint.spec.layers
    # What a family does not declare it does not use, even where config.json has it.
    window = (config.sliding_window if hasattr(kind, "sliding_window") else None) or 0
    types = config.layer_types if hasattr(kind, "layer_types") else None
    sliding = [name == "sliding_attention" for name in types or ["sliding_attention"] * layers]
    for layer, stated in enumerate(checkpoint.spec.windows):
        read = window if sliding[layer] else 0
        if stated != read:
            raise UserError(
                f"config.json states a window of {stated} tokens for layer {layer} (0: none) and "
                f"transformers reads {read} from it: state there what is meant with "
                "sliding_window, and with layer_types or use_sliding_window where the family has "
                "them"
            )


def _check_bases(config: Any, checkpoint: Checkpoint) -> None:
    """What config.json leaves out, transformers fills in: both must come to the same rotations."""
    for layer in range(checkpoint.spec.layers):
        rope, read = checkpoint.spec.rope_of(layer), _own_rope(config, layer)
        base = float(read.get("rope_theta", rope.theta))
        if base != rope.theta:
            raise UserError(
                f"config.json states a rotary base of {rope.theta:g} for layer {layer} and "
                f"transformers reads {base:g} from it: state rope_theta there, for each type of "
                "layer where they differ"
            )


def _own_rope(config: Any, layer: int) -> Mapping[str, Any]:
    """transformers' reading of a layer's rotary settings."""
    entries = dict(getattr(config, "rope_parameters", None) or {})
    if not _by_kind(entries):
        return entries
    return dict(entries[config.layer_types[layer]])


def _by_kind(entries: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in entries.values())


def _plain_rope(config: Any) -> None:
    """Plain rotation in place of whatever scaling `config` has."""
    entries = dict(getattr(config, "rope_parameters", None) or {})
    if _by_kind(entries):
        config.rope_parameters = {kind: _plain(dict(own)) for kind, own in entries.items()}
    else:
        config.rope_parameters = _plain(entries)


def _plain(entries: Mapping[str, Any]) -> dict[str, Any]:
    kept = {"rope_theta": 10000.0, **entries}
    plain = {"rope_type": "default", "rope_theta": kept["rope_theta"]}
    if entries.get("rope_type") != "proportional" and entries.get("partial_rotary_factor"):
        plain["partial_rotary_factor"] = entries["partial_rotary_factor"]
    return plain


def _export(decoder: torch.nn.Module) -> ir.Model:
    import torch

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = decoder

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
            with traceable():
                output = self.model(
                    input_ids=input_ids, position_ids=position_ids, use_cache=False
                )
            return output.logits  # type: ignore[no-any-return]

    names = ("input_ids", "position_ids")
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    # One tensor per input: torch.export would take two uses of one tensor for one input.
    examples = {name: torch.zeros(2, 5, dtype=torch.int64, device="meta") for name in names}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                Traced(),
                (),
                kwargs=examples,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,  # constant folding would read weights that are not there
                dynamic_shapes={name: {0: batch, 1: tokens} for name in names},
                output_names=["logits"],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = _first_line(error)
            raise UserError(
                f"PyTorch cannot export {type(decoder).__name__}: {reason}; this decoder needs "
                "support of its own"
            ) from None
    assert program is not None
    return program.model


def _first_line(error: BaseException) -> str:
    """What the first of a chain of errors says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def simplify(model: ir.Model) -> None:
    """Drop the weights' placeholders, fold shape arithmetic and remove what nothing uses."""
    import onnxscript.optimizer

    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if name.startswith(_WRAPPER_PREFIX) and tensor is not None and _is_placeholder(tensor):
            value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
            value.const_value = None
    # Weights without data are meant; the optimizer warns about each of them.
    logging.getLogger("onnx_ir.passes.common.initializer_deduplication").setLevel(logging.ERROR)
    onnxscript.optimizer.optimize_ir(model)
    for value in list(model.graph.initializers.values()):
        if value.name and value.name.startswith(_WRAPPER_PREFIX):
            value.name = value.name.removeprefix(_WRAPPER_PREFIX)


def _is_placeholder(tensor: ir.TensorProtocol) -> bool:
    """Whether a traced tensor is a weight without data; a constant of the code has its own."""
    return bool(getattr(tensor.raw, "is_meta", False))


def _match_weights(
    graph: ir.Graph, checkpoint: Checkpoint, decoder: torch.nn.Module
) -> dict[str, Tensor]:
    """The checkpoint tensor of every initializer without data; tied ones share one initializer."""
    _share_tied(graph, checkpoint, decoder)
    stored = _layer_free_names(decoder.state_dict())
    weights = {}
    for name, value in graph.initializers.items():
        if value.const_value is not None or not value.uses():
            continue
        if _layer_free(name) not in stored:
            continue  # a table such as inv_freq: rewriting replaces it, and verifies that
        location = checkpoint.tensors.get(name)
        if location is None:
            raise UserError(
                f"{checkpoint.directory} has no tensor {name}: the checkpoint is incomplete, or "
                f"its config.json (model_type {checkpoint.spec.family}) is another model's"
            )
        expected = tuple(value.shape.numpy()) if value.shape is not None else ()
        if location.shape != expected:
            raise UserError(
                f"tensor {name} has shape {list(location.shape)} where config.json makes it "
                f"{list(expected)}: config and weights do not belong together"
            )
        weights[name] = location
    return weights


def _layer_free(name: str) -> str:
    """`name` without layer numbers: the traced decoder has fewer layers than the checkpoint."""
    return re.sub(r"\.\d+\.", ".N.", name)


def _layer_free_names(names: Iterable[str]) -> set[str]:
    return {_layer_free(name) for name in names}


def _share_tied(graph: ir.Graph, checkpoint: Checkpoint, decoder: torch.nn.Module) -> None:
    """Point a tied output projection, absent in the checkpoint, to the input embedding."""
    tied: Mapping[str, str] = getattr(decoder, "_tied_weights_keys", None) or {}
    for name, source in dict(tied).items():
        value, shared = graph.initializers.get(name), graph.initializers.get(source)
        if value is None or name in checkpoint.tensors or not checkpoint.config_ties():
            continue
        if shared is None:
            value.name = source
        else:
            ir.convenience.replace_all_uses_with(value, shared)
            graph.initializers.pop(name)
