"""Whether an ONNX file takes tokens and gives logits of any number of them, and its dimensions'
names in the words of a package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from ctx_export.core.errors import UserError

INPUT_IDS, POSITION_IDS, LOGITS = "input_ids", "position_ids", "logits"
# Names of a package's own dimensions.
_BATCH, _TOKENS, _OTHERS = "batch", "tokens", ("rows", "slots")
_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_ENCODER = ("encoder_", "decoder_input_ids", "decoder_attention_mask")
_DYNAMIC = (
    "export it with dynamic axes for batch and tokens (torch.onnx.export: dynamic_shapes, or "
    "dynamic_axes in the older exporter)"
)


def check_interface(path: Path, graph: onnx.GraphProto) -> None:
    """Raise UserError unless `graph` maps input_ids [batch, tokens] to logits of every token."""
    kept = {tensor.name for tensor in graph.initializer}
    inputs = {info.name: info for info in graph.input if info.name not in kept}
    outputs = {info.name: info for info in graph.output}
    _check_kind(path, list(inputs))
    if LOGITS not in outputs:
        raise UserError(
            f"{path} has no output {LOGITS}, only {_listed(outputs)}: name the output of the "
            f"vocabulary projection {LOGITS} when you export the model"
        )
    for name in (INPUT_IDS, POSITION_IDS):
        if name in inputs:
            _check_tokens(path, inputs[name])
    _check_logits(path, outputs[LOGITS])


def _check_kind(path: Path, inputs: Sequence[str]) -> None:
    encoder = [name for name in inputs if name.startswith(_ENCODER)]
    if encoder:
        raise UserError(
            f"{path} has the input {encoder[0]}: it is the decoder of an encoder-decoder model, "
            "whose attention to the encoder has no positions to scale; export a decoder-only model"
        )
    if "use_cache_branch" in inputs:
        raise UserError(
            f"{path} has the input use_cache_branch: it holds two models in one; export it again "
            "unmerged (optimum-cli export onnx --no-post-process)"
        )
    if INPUT_IDS in inputs:
        return
    if "inputs_embeds" in inputs:
        raise UserError(
            f"{path} takes inputs_embeds and no {INPUT_IDS}: export the model together with its "
            "token embedding"
        )
    raise UserError(
        f"{path} has no input {INPUT_IDS}, only {_listed(inputs)}: it is no decoder, or its input "
        f"has another name; export it with the tokens' input named {INPUT_IDS}"
    )


def _check_tokens(path: Path, info: onnx.ValueInfoProto) -> None:
    kind = info.type.tensor_type
    if kind.elem_type not in _INTEGERS:
        raise UserError(
            f"{path}: input {info.name} has type {_type_name(kind.elem_type)}: int64 is needed"
        )
    if not kind.HasField("shape") or len(kind.shape.dim) != 2:
        raise UserError(
            f"{path}: input {info.name} has {len(kind.shape.dim)} dimensions: two are needed, "
            "[batch, tokens]"
        )
    for what, dimension in zip(("batch", "token"), kind.shape.dim, strict=True):
        if dimension.WhichOneof("value") == "dim_value":
            raise UserError(
                f"{path}: input {info.name} has a fixed {what} dimension of "
                f"{dimension.dim_value}: {_DYNAMIC}"
            )


def _check_logits(path: Path, info: onnx.ValueInfoProto) -> None:
    kind = info.type.tensor_type
    if kind.elem_type not in _FLOATS:
        raise UserError(
            f"{path}: output {LOGITS} has type {_type_name(kind.elem_type)}: float32, float16 or "
            "bfloat16 is needed"
        )
    dims = kind.shape.dim
    if kind.HasField("shape") and len(dims) != 3:
        raise UserError(
            f"{path}: output {LOGITS} has {len(dims)} dimensions: three are needed, [batch, "
            "tokens, vocabulary]; export the logits of every token"
        )
    if len(dims) == 3 and dims[1].WhichOneof("value") == "dim_value":
        raise UserError(
            f"{path}: output {LOGITS} has a fixed token dimension of {dims[1].dim_value}: a "
            "package computes any number of rows; export the logits of every token"
        )


def name_dimensions(model: onnx.ModelProto) -> None:
    """Call the two dimensions of input_ids batch and tokens throughout the model, as packages do;
    another dimension of such a name gets a new one."""
    ids = next(info for info in model.graph.input if info.name == INPUT_IDS)
    batch, tokens = ids.type.tensor_type.shape.dim
    old = (batch.dim_param or _BATCH, tokens.dim_param or _TOKENS)
    if old[0] == old[1]:  # one name for both: nothing can be told from it
        batch.dim_param, tokens.dim_param = _BATCH, _TOKENS
        old = (_BATCH, _TOKENS)
    renamed = {name: f"source.{name}" for name in (_BATCH, _TOKENS, *_OTHERS)}
    renamed |= {old[0]: _BATCH, old[1]: _TOKENS}
    for info in _infos(model):
        for dimension in info.type.tensor_type.shape.dim:
            if dimension.dim_param in renamed:
                dimension.dim_param = renamed[dimension.dim_param]
    batch.dim_param, tokens.dim_param = _BATCH, _TOKENS


def _infos(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for function in model.functions:
        yield from function.value_info


def _listed(names: object) -> str:
    found = list(names)  # type: ignore[call-overload]
    return ", ".join(found[:8]) + (" …" if len(found) > 8 else "") if found else "none"


def _type_name(elem_type: int) -> str:
    known = elem_type in onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(elem_type)).lower() if known else str(elem_type)
