"""What a directory holds, package or checkpoint, as one report of plain JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctx_export.core.cache_type import ELEMENT_BYTES
from ctx_export.core.errors import UserError
from ctx_export.core.manifest import FILE_NAME, Manifest

if TYPE_CHECKING:
    from ctx_export.core.rope_settings import RopeSettings

CONFIG_NAME = "config.json"


def inspect_path(path: Path) -> dict[str, Any]:
    """The report of a package or a checkpoint directory; its `kind` says which of the two."""
    if not path.exists():
        raise UserError(f"{path} does not exist: name a package or a checkpoint directory")
    if path.is_dir() and (path / FILE_NAME).is_file():
        return inspect_package(path)
    if path.is_dir() and (path / CONFIG_NAME).is_file():
        return inspect_checkpoint(path)
    raise UserError(
        f"{path} is neither a package (a directory with {FILE_NAME}) nor a checkpoint (one with "
        f"{CONFIG_NAME}): name a directory that is"
    )


def inspect_package(directory: Path) -> dict[str, Any]:
    """A package's manifest, with what its files say today: sizes and the plugin's checksum."""
    manifest = Manifest.load(directory)
    report = {"kind": "package", "path": str(directory), **manifest.to_json()}
    report["cache_bytes_per_sequence"] = cache_bytes(manifest)
    report["weights"] = {
        **manifest.weights,
        **_files(directory, manifest.weights.get("files") or ()),
    }
    if manifest.plugins is not None:
        report["plugins"] = {
            **manifest.plugins,
            "state": _checksum_state(directory, manifest.plugins),
        }
    return report


def cache_bytes(manifest: Manifest) -> int:
    """KV cache bytes of one sequence: the sum over layers of 2 · KV heads · head_dim · C · bytes
    per element."""
    try:
        model, slots = manifest.model, sum(cache.capacity for cache in manifest.layers)
        element = ELEMENT_BYTES[manifest.cache_dtype]
        per_slot = 2 * model["kv_heads"] * model["head_dim"] * element
        return int(per_slot * slots)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"the manifest does not state {error}: export the package again") from None


def inspect_checkpoint(directory: Path) -> dict[str, Any]:
    """A checkpoint's shape and position settings from its config.json, and its weight files."""
    from ctx_export.core.rope_settings import read_rope_settings

    config = _read_json(directory / CONFIG_NAME)
    rope = read_rope_settings(config)
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    maximum = _count(config, "max_position_embeddings")
    return {
        "kind": "checkpoint",
        "path": str(directory),
        "model": _model_facts(config),
        "max_position_embeddings": maximum,
        "original_context": rope.original_context or maximum,
        "precision": config.get("dtype") or config.get("torch_dtype"),
        "rope": asdict(rope),
        "scaling": _own_scaling(config, rope, maximum),
        "weights": _files(directory, names),
    }


def _own_scaling(config: Mapping[str, Any], rope: RopeSettings, maximum: int) -> dict[str, Any]:
    """The table that the checkpoint's own settings give at its full length."""
    from ctx_export.scaling import names, resolve
    from ctx_export.scaling.base import RotaryShape

    if rope.method not in names():
        return {"method": rope.method, "available": False}
    head_dim = _head_dim(config)
    shape = RotaryShape(
        head_dim=head_dim,
        rotary_dim=int(head_dim * rope.partial_rotary_factor),
        theta=rope.theta,
        original_context=rope.original_context or maximum,
        max_position_embeddings=maximum,
    )
    resolved = resolve(rope.method, shape, maximum, parameters=rope.parameters)
    return {
        "method": rope.method,
        "available": True,
        "factor": resolved.factor,
        "multiplier": resolved.table.multiplier,
        "inv_freq": [float(value) for value in resolved.table.inv_freq],
        **resolved.table.details,
    }


def _model_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = _count(config, "num_attention_heads")
    return {
        "family": config.get("model_type"),
        "layers": _count(config, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": _head_dim(config),
        "vocab": _count(config, "vocab_size"),
    }


def _head_dim(config: Mapping[str, Any]) -> int:
    if config.get("head_dim"):
        return _count(config, "head_dim")
    return _count(config, "hidden_size") // _count(config, "num_attention_heads")


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(
            f"{key} in {CONFIG_NAME} is {value!r}: a decoder's config has a whole number ≥ 1 there"
        )
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; download the checkpoint again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}: it must be a JSON object")
    return value


def _files(directory: Path, names: Iterable[Any]) -> dict[str, Any]:
    """The named files with their total bytes, and those that are not there."""
    known = [str(name.get("file")) if isinstance(name, Mapping) else str(name) for name in names]
    present = [name for name in known if (directory / name).is_file()]
    return {
        "files": known,
        "bytes": sum((directory / name).stat().st_size for name in present),
        "missing": [name for name in known if name not in present],
    }


def _checksum_state(directory: Path, plugins: Mapping[str, Any]) -> str:
    """Whether the plugin library is the one that was exported: matches, differs or missing."""
    path = directory / str(plugins.get("file"))
    if not path.is_file():
        return "missing"
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return "matches" if digest.hexdigest() == plugins.get("sha256") else "differs"
