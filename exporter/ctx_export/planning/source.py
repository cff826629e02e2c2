"""What a plan is made from: a config.json, wherever it is, and what is known of the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.model_spec import ModelSpec
from ctx_export.frontends.checkpoint import PRECISION_OF, model_spec, read_config_file
from ctx_export.frontends.refusals import check_supported
from ctx_export.frontends.shards import INDEX_NAME, SINGLE_NAME
from ctx_export.planning.parameters import Parameters, count_parameters
from ctx_export.planning.weights import Stored, of_headers, of_index

CONFIG_NAME = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSource:
    """A decoder that has not been read: its config.json, its counts, and its stored weights where
    they or their index are there."""

    name: str
    spec: ModelSpec
    parameters: Parameters
    stored: Stored | None
    notes: tuple[str, ...] = ()


def read_source(model: str, precision: str | None = None) -> PlanSource:
    """The source of a checkpoint directory, a .json file, a hub id or `demo`; `precision` is that
    of the package where it is asked for.

    Raises UserError for a model that is not there, a config.json that lacks something, and a
    decoder that cannot be exported.
    """
    name, path = _locate(model)
    config = read_config_file(path)
    check_supported(config)
    stored = _stored(path)
    own = PRECISION_OF.get(str(config.get("dtype") or config.get("torch_dtype")))
    notes: list[str] = []
    if stored is not None and stored.precision is not None:
        own = own if own in stored.precisions else stored.precision
    if own is None:
        own = "fp32"
        if precision is None:
            notes.append("config.json states no dtype: fp32 is assumed, give --precision")
    spec = model_spec(config, own)
    return PlanSource(
        name=name,
        spec=spec,
        parameters=count_parameters(config, spec),
        stored=stored,
        notes=tuple(notes),
    )


def _locate(model: str) -> tuple[str, Path]:
    """What to call a model, and its config.json."""
    path = Path(model)
    if model == "demo":
        from ctx_export import demo

        return model, demo.path() / CONFIG_NAME
    if path.is_dir():
        if not (path / CONFIG_NAME).is_file():
            raise UserError(
                f"{model} has no {CONFIG_NAME}: name a checkpoint directory, or a .json file with "
                "what its config.json holds"
            )
        return path.resolve().name or model, path / CONFIG_NAME
    if path.suffix == ".onnx":
        raise UserError(
            f"{model} is an ONNX file: plan the checkpoint it was made from, or its config.json"
        )
    if path.is_file():
        own = path.name == CONFIG_NAME
        return (path.resolve().parent.name if own else path.stem), path
    if path.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UserError(
            f"{model} is not there: name a checkpoint directory, a config.json, a hub id "
            "(owner/name) or demo"
        )
    return model, _download(model)


def _download(model: str) -> Path:
    """config.json of a hub id in the hub's cache, and beside it the index of its shards where it
    has one."""
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise UserError(
            f"{model} is no local path and huggingface_hub is not installed: pip install "
            "'ctx-export[export]', or give a config.json"
        ) from None
    try:
        config = Path(hf_hub_download(model, CONFIG_NAME))
    except Exception as error:  # the hub client raises dozens of unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{model} is no local path and its {CONFIG_NAME} could not be downloaded from the hub "
            f"({reason}); give the path of a checkpoint directory or of a config.json"
        ) from None
    try:
        hf_hub_download(model, INDEX_NAME)
    except Exception:  # without an index the weights are counted
        return config
    return config


def _stored(config: Path) -> Stored | None:
    """The weights that lie beside a config.json."""
    directory = config.parent
    if config.name != CONFIG_NAME:
        return None
    index = directory / INDEX_NAME
    if index.is_file():
        stated = _json(index)
        shards = set(stated.get("weight_map", {}).values())
        if not shards or not all((directory / str(name)).is_file() for name in shards):
            return of_index(stated, index)
        return of_headers(directory)
    return of_headers(directory) if (directory / SINGLE_NAME).is_file() else None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: download it again")
    return value
