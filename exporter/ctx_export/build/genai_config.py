"""A package that onnxruntime-genai loads: the graph's interface changed, genai_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ctx_export.core.io_contract import GENAI
from ctx_export.core.manifest import MODEL_NAME, Manifest
from ctx_export.core.plan import Plan

CONFIG_NAME = "genai_config.json"
# Its type for any decoder with one cache a layer. A family's name would switch on what its own
# builder's files need, such as a second prefill at 4097 tokens for Phi-3.
_TYPE = "decoder"


def convert_to_genai(
    package: Path, manifest: Manifest, plan: Plan, config: Mapping[str, Any]
) -> tuple[Manifest, list[str]]:
    """Give a finished package of the native contract onnxruntime-genai's.

    Rewrites its model.onnx, writes genai_config.json and returns the manifest, for the caller to
    save, with lines that say what was done. `config` is the checkpoint's config.json, empty where
    there is none.
    """
    from ctx_export.passes.genai_interface import set_genai_interface

    model = ir.load(package / MODEL_NAME)
    set_genai_interface(model, plan.package_io)
    changed = package / f".{MODEL_NAME}"
    ir.save(model, changed)
    changed.replace(package / MODEL_NAME)
    manifest = replace(manifest, io=plan.package_io, io_contract=GENAI)
    text = json.dumps(genai_config(manifest, plan, config), indent=1)
    (package / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    lines = [f"inputs and outputs are onnxruntime-genai's: {CONFIG_NAME}"]
    if manifest.precision == "bf16":
        lines.append(
            "onnxruntime's CPU provider has no bfloat16 matrix product: onnxruntime-genai needs a "
            "GPU provider for this package; for a CPU give --precision fp32"
        )
    return manifest, lines


def genai_config(manifest: Manifest, plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """genai_config.json of a package.

    past_present_share_buffer: slots for search.max_length tokens are allocated once and written
    in place; without it every token copies the whole cache. chunk_size cuts a long prompt, which
    onnxruntime-genai does for one sequence alone.
    """
    model = manifest.model
    chunk = {"chunk_size": manifest.max_chunk} if manifest.max_batch == 1 else {}
    return {
        "model": {
            **_special_tokens(manifest, config),
            "context_length": manifest.max_context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL_NAME,
                "head_size": model["head_dim"],
                "hidden_size": plan.spec.hidden,
                "inputs": {
                    "input_ids": _name(manifest, "input_ids"),
                    "attention_mask": _name(manifest, "attention_mask"),
                    "past_key_names": _per_layer(manifest, "past_key"),
                    "past_value_names": _per_layer(manifest, "past_value"),
                },
                "outputs": {
                    "logits": _name(manifest, "logits"),
                    "present_key_names": _per_layer(manifest, "present_key"),
                    "present_value_names": _per_layer(manifest, "present_value"),
                },
                "num_attention_heads": model["heads"],
                "num_hidden_layers": model["layers"],
                "num_key_value_heads": model["kv_heads"],
            },
            "type": _TYPE,
            "vocab_size": model["vocab"],
        },
        "search": {
            "do_sample": False,
            "max_length": manifest.max_context,
            "num_beams": 1,
            "past_present_share_buffer": True,
            **chunk,
        },
    }


def _name(manifest: Manifest, role: str) -> str:
    return manifest.of_role(role)[0].name


def _per_layer(manifest: Manifest, role: str) -> str:
    """The name of a role's tensors with %d for the layer."""
    return _name(manifest, role).replace(".0.", ".%d.")


def _special_tokens(manifest: Manifest, config: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of the tokens that begin, end and pad a text, as far as they are known.

    Rows of a batch are padded with an id that must be in the vocabulary: where the checkpoint
    names none, with that of the end of a text.
    """
    model = manifest.model
    ends = list(model["eos_token_ids"])
    pad = config.get("pad_token_id")
    if not isinstance(pad, int) or not 0 <= pad < model["vocab"]:
        pad = ends[0] if ends else 0
    known = {"bos_token_id": model["bos_token_id"], "eos_token_id": ends or None}
    return {**{k: v for k, v in known.items() if v is not None}, "pad_token_id": pad}
