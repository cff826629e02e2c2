"""Whose inputs and outputs a package's graph has: its own, or onnxruntime-genai's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import BOUNDED, CacheInfo, TensorInfo
from ctx_export.core.rules import Landmark

if TYPE_CHECKING:
    from ctx_export.core.recipe import Recipe

NATIVE, GENAI = "native", "genai"
IO_CONTRACTS = (NATIVE, GENAI)


def genai_io(io: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    """onnxruntime-genai's form of a package's own tensors, in graph order.

    Its loader wants no position_ids: a row's positions follow from its mask.
    """
    made: list[TensorInfo] = []
    for tensor in io:
        if tensor.role == "input_ids":
            made += [tensor, _MASK]
        elif tensor.role == "logits":
            made.append(replace(tensor, shape=("batch", 1, tensor.shape[-1])))
        elif tensor.role.startswith(("past", "present")):
            slots = "past" if tensor.role.startswith("past") else "slots"
            batch, heads, _, dim = tensor.shape
            made.append(replace(tensor, shape=(batch, heads, slots, dim)))
    return tuple(made)


_MASK = TensorInfo(
    name="attention_mask", dtype="int64", shape=("batch", "total"), role="attention_mask"
)


def check_genai(
    recipe: Recipe, caches: Sequence[CacheInfo], *, method: str, by_length: bool
) -> None:
    """Raise UserError where onnxruntime-genai cannot run what a recipe asks for; `by_length`: the
    frequencies of `method` follow the length of the text."""
    if recipe.engine not in ("auto", "none"):
        raise UserError(
            f"engine is {recipe.engine}: an engine has the package's own inputs, not "
            "onnxruntime-genai's; leave --engine or --io genai out"
        )
    if by_length:
        raise UserError(
            f"method {method} follows the length that a text will reach, which onnxruntime-genai "
            "does not tell the graph: choose another method, such as yarn, or leave --io genai out"
        )
    for layer, cache in enumerate(caches):
        if cache.policy == BOUNDED:
            raise UserError(
                f"the cache of layer {layer} has {cache.capacity} slots however long the text is "
                f"({cache.rule}), and onnxruntime-genai's grow with it: leave --sinks, --window "
                "and the cache policy out, or leave --io genai out"
            )
        if isinstance(cache.parameters, Landmark):
            raise UserError(
                f"the cache of layer {layer} is of policy {cache.rule}, which keeps more than one "
                "slot a token, and onnxruntime-genai has one: choose another, or leave --io "
                "genai out"
            )
