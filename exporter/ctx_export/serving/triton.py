"""A Triton model repository around a package: REPOSITORY/NAME/config.pbtxt and NAME/1/.

Triton keeps a sequence's KV cache as implicit state: what the model wrote into present in one
request is past in the next of the same sequence. The state has one size from its first request
on. Caches of fixed size are such states as they are. A full cache is one with slots for the whole
maximum: Triton begins a state of variable size with one slot, and puts sequences into one batch
whose states differ in size, which fails. Every state is moved with every request, so what a
cache weighs is what a token costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctx_export.build.link import share_file
from ctx_export.build.package import check_output, staged
from ctx_export.core.errors import UserError
from ctx_export.core.io_contract import NATIVE
from ctx_export.core.manifest import ENGINE_NAME, FILE_NAME, MODEL_NAME, Manifest, TensorInfo
from ctx_export.core.plan import Plan
from ctx_export.core.recipe import Recipe
from ctx_export.core.rules import Landmark
from ctx_export.serving.pbtxt import Word, text_format

CONFIG_NAME = "config.pbtxt"
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int8": "TYPE_INT8",
}
# Sequences that an instance keeps the caches of, per sequence of a batch; others wait.
CANDIDATES = 4
IDLE_MICROSECONDS = 60_000_000  # after which a silent sequence's cache is dropped
_QUEUE_MICROSECONDS = 1_000  # that a token waits for others to be computed with it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backend:
    """A Triton back end and the package's files that it reads."""

    name: str
    model: str
    files: tuple[str, ...]
    kind: str  # of the instances: where they run


def check_repository(repository: Path, name: str, *, force: bool) -> None:
    """Raise UserError where the model's place is taken or cannot be made."""
    if repository.exists() and not repository.is_dir():
        raise UserError(
            f"triton_repository {repository} is not a directory: name the one that tritonserver "
            "gets as --model-repository"
        )
    if repository.is_dir():
        check_output(repository / name, force=force)


def check_triton(plan: Plan) -> None:
    """Raise UserError where Triton cannot serve the package of a plan."""
    if plan.io_contract != NATIVE:
        raise UserError(
            f"io is {plan.io_contract}: Triton keeps the caches of the native interface; leave "
            "--io or --triton-repository out"
        )
    if plan.cache_dtype not in _TYPES:
        raise UserError(
            f"the caches are of {plan.cache_dtype}, a type that Triton does not have: give "
            "--kv-cache-dtype int8 or auto, or leave --triton-repository out"
        )
    for cache in plan.caches:
        if isinstance(cache.parameters, Landmark) and cache.parameters.token is not None:
            raise UserError(
                "landmark tokens are put into the text by sessions, and Triton's clients would "
                "not: leave --landmark-token or --triton-repository out"
            )


def write_repository(
    package: Path, manifest: Manifest, repository: Path, recipe: Recipe
) -> list[str]:
    """Add the finished `package` to the model repository, under the package's name.

    Files are shared with the package as its weights are with the checkpoint. Returns lines that
    say what was written.
    """
    from ctx_export.inspection.package import cache_bytes
    from ctx_export.serving.triton_readme import readme

    backend, name = _backend(manifest), package.absolute().name
    repository.mkdir(parents=True, exist_ok=True)
    with staged(repository / name, force=recipe.force) as stage:
        version = stage / "1"
        version.mkdir()
        for file in backend.files:
            share_file(package / file, version / file, hard_links=not recipe.copy_weights)
        share_file(package / FILE_NAME, stage / FILE_NAME, hard_links=False)
        config = model_config(manifest, name)
        (stage / CONFIG_NAME).write_text(text_format(config), encoding="utf-8")
        text = readme(manifest, name, backend.name, cache_bytes(manifest))
        (stage / "README.md").write_text(text, encoding="utf-8")
    lines = [f"Triton model {repository / name}: back end {backend.name}"]
    if manifest.engine is not None and backend.name != "tensorrt":
        lines.append(
            f"the engine of {manifest.engine['runtime']} is not in it: Triton's TensorRT back end "
            "loads those of --engine tensorrt"
        )
    if manifest.max_context is not None:
        lines.append(
            f"Triton moves the whole cache in every request, {cache_bytes(manifest)} bytes a "
            "sequence: --sinks and --window make one of fixed size"
        )
    return lines


def _backend(manifest: Manifest) -> _Backend:
    if manifest.engine is not None and manifest.engine["runtime"] == "tensorrt":
        library = [str(manifest.plugins["file"])] if manifest.plugins is not None else []
        return _Backend(
            name="tensorrt", model=ENGINE_NAME, files=(ENGINE_NAME, *library), kind="KIND_GPU"
        )
    files = (MODEL_NAME, *manifest.weights["files"])
    return _Backend(name="onnxruntime", model=MODEL_NAME, files=files, kind="KIND_AUTO")


def model_config(manifest: Manifest, name: str) -> dict[str, Any]:
    """The fields of Triton's ModelConfig message."""
    backend = _backend(manifest)
    roles = ("input_ids", "seen", "new", "logit_rows", "rope_length")
    inputs = [tensor for role in roles for tensor in manifest.of_role(role)]
    return {
        "name": name,
        "backend": backend.name,
        "default_model_filename": backend.model,
        "max_batch_size": manifest.max_batch,
        "input": [_tensor(tensor) for tensor in inputs],
        "output": [_tensor(tensor) for tensor in manifest.of_role("logits")],
        "sequence_batching": {
            "max_sequence_idle_microseconds": IDLE_MICROSECONDS,
            "oldest": {
                "max_candidate_sequences": CANDIDATES * manifest.max_batch,
                "max_queue_delay_microseconds": _QUEUE_MICROSECONDS,
            },
            "state": _states(manifest),
        },
        "instance_group": [{"count": 1, "kind": Word(backend.kind), **_profiles(backend)}],
    }


def _profiles(backend: _Backend) -> Mapping[str, Any]:
    """An engine's profiles, prefill and decode: Triton takes the one that fits a request best."""
    return {"profile": ["0", "1"]} if backend.name == "tensorrt" else {}


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    """An input or output without its batch; one number a sequence is sent as a vector of one."""
    dims = _dims(tensor.shape[1:])
    config = {"name": tensor.name, "data_type": Word(_TYPES[tensor.dtype])}
    if not dims:
        return {**config, "dims": [1], "reshape": {"shape": []}}
    return {**config, "dims": dims}


def _dims(shape: Sequence[int | str]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]


def _states(manifest: Manifest) -> list[dict[str, Any]]:
    """Past and present of every layer, in one buffer that begins as zeros: slots without a token
    still take part in attention, with weight 0, which a NaN would survive."""
    states = []
    for part in ("key", "value"):
        pairs = zip(
            manifest.of_role(f"past_{part}"), manifest.of_role(f"present_{part}"), strict=True
        )
        for past, present in pairs:
            _, heads, slots, dim = past.shape
            size = slots if isinstance(slots, int) else manifest.layers[past.layer].capacity
            kind = {"data_type": Word(_TYPES[past.dtype]), "dims": [heads, size, dim]}
            states.append(
                {
                    "input_name": past.name,
                    "output_name": present.name,
                    **kind,
                    "use_same_buffer_for_input_output": True,
                    "initial_state": [{"name": f"no {part}s", **kind, "zero_data": True}],
                }
            )
    return states
