"""The `ModelSpec` of an ONNX file: from the config that belongs to it, checked against the tables
that its graph rotates by, or from the graph alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import UNKNOWN_FAMILY, ModelSpec
from ctx_export.core.rope_settings import RopeSettings
from ctx_export.frontends.checkpoint import Checkpoint, model_spec, read_config
from ctx_export.frontends.onnx_tables import exact_tables, plain_base
from ctx_export.frontends.refusals import check_supported
from ctx_export.passes.locate import Site, find_sites
from ctx_export.scaling.base import FrequencyTable

GENAI_NAME, CONFIG_NAME = "genai_config.json", "config.json"
_PRECISIONS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What belongs to an ONNX file: a Hugging Face config, or what onnxruntime-genai wrote."""

    path: Path
    config: Mapping[str, Any] | None  # with where it stands, for messages
    config_name: str
    genai: Mapping[str, Any] | None

    @classmethod
    def of(cls, path: Path, reference: Checkpoint | None) -> Beside:
        """The reference's config.json, else the one beside `path`, and genai_config.json there."""
        genai = _read_json(path.parent / GENAI_NAME)
        if reference is not None:
            name = f"{reference.directory.name}/{CONFIG_NAME}"
            return cls(path=path, config=reference.config, config_name=name, genai=genai)
        own = path.parent / CONFIG_NAME
        config = read_config(path.parent) if own.is_file() else None
        if config is not None:
            check_supported(config)
        return cls(path=path, config=config, config_name=str(own), genai=genai)


def file_spec(
    graph: ir.Graph, beside: Beside, original_context: int | None = None
) -> tuple[ModelSpec, tuple[FrequencyTable | None, ...]]:
    """The spec of a normalised graph and what each layer rotates by, None where that follows the
    length; raises UserError where nothing states a fact that is needed, or the graph rotates
    otherwise than its config says."""
    sites = find_sites(graph)
    if not sites:
        raise UserError(
            f"{beside.path} has no attention on [batch, head, token, dim], which an Attention "
            "operator or a Softmax between two products of computed values would be: it is no "
            "decoder, or one that keeps batch and heads in one dimension, as those with ALiBi "
            "(bloom) do; export a model with rotary positions"
        )
    precision = _precision(beside.path, sites)
    if beside.config is None:
        spec = _spec_of_graph(graph, sites, beside, original_context)
        return spec, exact_tables(sites, spec, str(beside.path))
    spec = model_spec(beside.config, precision)
    if spec.layers != len(sites):
        raise UserError(
            f"{beside.path} has {len(sites)} attentions, {beside.config_name} states "
            f"{spec.layers} layers: they are not of one model"
        )
    tables = exact_tables(sites, spec, beside.config_name)
    vocab = _vocab(graph)
    return (spec if vocab is None else replace(spec, vocab=vocab)), tables


def _precision(path: Path, sites: Sequence[Site]) -> str:
    """The precision that the attentions compute in, which the caches will have."""
    types = {site.attention.k.dtype for site in sites}
    if len(types) != 1 or (dtype := types.pop()) not in _PRECISIONS:
        raise UserError(
            f"{path}: its attentions compute in {sorted(map(str, types))}: float32, float16 or "
            "bfloat16 is needed, one for all"
        )
    return _PRECISIONS[dtype]


def _spec_of_graph(
    graph: ir.Graph, sites: Sequence[Site], beside: Beside, original_context: int | None
) -> ModelSpec:
    """Everything from shapes and tables."""
    model = dict((beside.genai or {}).get("model") or {})
    precision = _precision(beside.path, sites)
    ropes = tuple(_rope(site, precision, beside.path) for site in sites)
    turning = [i for i, rope in enumerate(ropes) if rope.rotates]
    if not turning:
        raise UserError(f"{beside.path}: no layer rotates its keys: there is nothing to scale")
    farthest = [i for i in turning if not sites[i].window] or turning
    heads, kv_heads, head_dim = sites[farthest[0]].sizes
    vocab = _vocab(graph)
    if vocab is None:
        raise UserError(
            f"{beside.path}: the logits' last dimension is not a number: give --reference with "
            "the checkpoint that it was made from"
        )
    return ModelSpec(
        family=str(model.get("type") or UNKNOWN_FAMILY),
        layers=len(sites),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        hidden=heads * head_dim,
        max_position_embeddings=_trained(graph, beside, model, original_context),
        precision=precision,
        rope=ropes[farthest[0]],
        windows=tuple(site.window for site in sites),
        ropes=() if len(set(map(repr, ropes))) == 1 else ropes,
        bos_token_id=_one_id(model.get("bos_token_id")),
        eos_token_ids=_ids(model.get("eos_token_id")),
    )


def _rope(site: Site, precision: str, path: Path) -> RopeSettings:
    """A layer's position settings from the table that it rotates by, which must be a plain one."""
    if not site.query.rotary_dim:
        return RopeSettings(method="none", theta=10000.0, rotates=False)
    base = None if site.query.table is None else plain_base(site.query.table, precision)
    if base is None:
        raise UserError(
            f"{path}: layer {site.layer} rotates by a table that no plain base explains: it is "
            "scaled, or searched; give --reference with the checkpoint that the file was made "
            "from, whose config.json says what it is"
        )
    share = site.query.rotary_dim / site.sizes[2]
    return RopeSettings(method="none", theta=base, partial_rotary_factor=share)


def _trained(
    graph: ir.Graph, beside: Beside, model: Mapping[str, Any], original_context: int | None
) -> int:
    """The context that the model was trained on."""
    if original_context is not None:
        return original_context
    stated = model.get("context_length")
    if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
        return stated
    rows = _table_rows(graph)
    if rows is not None:
        return rows
    raise UserError(
        f"{beside.path} does not say how many tokens its model was trained on: give "
        "--original-context, or --reference with the checkpoint that it was made from"
    )


def _table_rows(graph: ir.Graph) -> int | None:
    """Positions that the graph's own cosines reach, where it holds them as a table."""
    for node in graph:
        if node.op_type == "RotaryEmbedding" and len(node.inputs) > 1:
            table = node.inputs[1]
            if table is not None and table.const_value is not None and table.shape is not None:
                rows = table.shape[0]
                return rows if isinstance(rows, int) else None
    return None


def _vocab(graph: ir.Graph) -> int | None:
    shape = graph.outputs[0].shape
    size = shape[-1] if shape is not None and len(shape) == 3 else None
    return size if isinstance(size, int) else None


def _one_id(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ids(value: Any) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    return tuple(entry for entry in found if _one_id(entry) is not None)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; repair or remove it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: repair or remove it")
    return value
