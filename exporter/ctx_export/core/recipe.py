"""Stage 1: command line and YAML to one frozen `Recipe`.

Precedence: command line, then `--set a.b=c`, then the recipe file, then the defaults. Within the
`scaling` section a factor and an original context may be spelled as Hugging Face spells them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctx_export.core.cache_type import AUTO, KV_CACHE_DTYPES
from ctx_export.core.errors import UserError
from ctx_export.core.io_contract import IO_CONTRACTS, NATIVE
from ctx_export.core.model_spec import PRECISIONS
from ctx_export.core.sizes import format_size, parse_size

ENGINES = ("auto", "none", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything a user can ask of an export. None means: as the checkpoint or the method says.

    Raises UserError for values that cannot work with any model. `method` may name a scaling method
    or a cache policy: it is stored as `method` or `cache` by its own name, whatever alias was
    given. The parameters of a named scaling method are checked and converted.
    """

    model: str = "demo"  # checkpoint directory, hub id, .onnx file or "demo"
    reference: str | None = None  # checkpoint that an .onnx file was made from
    output: Path | None = None
    method: str | None = None  # None: honour the checkpoint's own settings
    target: int | None = None  # tokens; None: the checkpoint's max_position_embeddings
    factor: float | None = None
    original_context: int | None = None
    cache: str | None = None  # cache policy; None: what its options ask for
    sinks: int | None = None
    window: int | None = None  # 0: every token is seen
    memory_tokens: int | None = None  # averages of evicted blocks that a token sees
    memory_block: int | None = None  # tokens that are averaged
    landmark_block: int | None = None  # tokens that are chosen together
    landmark_topk: int | None = None  # blocks that a token chooses
    landmark_token: int | None = None  # id that ends a block; None: the mean of its keys stands
    landmark_shared: bool | None = None  # whether the heads of a KV head choose together
    group: int | None = None  # tokens that share a position
    neighbor: int | None = None  # distances below it are met as they are
    chunk: int | None = None  # tokens whose positions count up
    precision: str | None = None  # fp32, fp16, bf16; None: the checkpoint's own
    kv_cache_dtype: str = AUTO  # auto (as the precision), fp8, int8
    calibration: Path | None = None  # text that a quantised cache's scales are chosen from
    engine: str = "auto"  # auto, none, tensorrt, tensorrt-rtx
    io: str = NATIVE  # whose inputs and outputs the graph has: native, genai
    max_batch: int = 1
    max_chunk: int | None = None  # None: 1024, or the target where that is less
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the method, by HF key
    copy_weights: bool = False  # rather than share the source's files
    triton_repository: Path | None = None  # Triton model repository to add the package to
    validate: bool = True
    tolerance: float | None = None  # None: 1e-3 of the logit scale in float32, else the rule
    force: bool = False

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("model is empty: name a checkpoint directory, a hub id or demo")
        for name, minimum in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and (not _whole(value) or value < minimum):
                raise UserError(f"{name} is {value!r}: it must be a whole number ≥ {minimum}")
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, KV_CACHE_DTYPES)
        _check_choice("engine", self.engine, ENGINES)
        _check_choice("io", self.io, IO_CONTRACTS)
        self._check_reference()
        self._check_calibration()
        for name, least in (("factor", 1.0), ("tolerance", None)):
            _check_number(name, getattr(self, name), least)
        if self.tolerance is not None and self.tolerance >= 1:
            raise UserError(
                f"tolerance is {self.tolerance:g}: give a share of the logit scale below 1, such "
                "as 1e-3"
            )
        self._check_method()
        self._check_policy()
        if self.output is not None:
            self._check_output(self.output)

    def _check_method(self) -> None:
        from ctx_export import cache
        from ctx_export.scaling import find
        from ctx_export.scaling._parameters import check

        if self.method is None:
            return
        policy = cache.find(self.method)
        if policy is not None:
            if self.cache is not None and cache.find(self.cache) is not policy:
                raise UserError(
                    f"method {policy.name} and cache {self.cache} are two cache policies: keep one"
                )
            object.__setattr__(self, "cache", policy.name)
            object.__setattr__(self, "method", None)
            return
        method = find(self.method)
        if self.factor is not None and not method.uses_factor:
            raise UserError(
                f"factor is {self.factor:g}: method {method.name} takes no factor; leave it out"
            )
        parameters = check(method.parameters, self.parameters, where="scaling")
        object.__setattr__(self, "method", method.name)
        object.__setattr__(self, "parameters", parameters)

    def _check_policy(self) -> None:
        """The policy by its own name: the one given, or the one that options belong to alone."""
        if self.cache is None and not self._of_policies(_OWN_OPTIONS):
            return
        from ctx_export import cache
        from ctx_export.scaling._parameters import closest

        every = cache.policies()
        if self.cache is not None:
            policy = cache.find(self.cache)
            if policy is None:
                names = [name for entry in every.values() for name in (entry.name, *entry.aliases)]
                near = closest(self.cache, names)
                raise UserError(
                    f"unknown cache {self.cache!r}{near} (choose one of {', '.join(every)})"
                )
        else:
            given = self._of_policies(_OWN_OPTIONS)
            policy = next(p for p in every.values() if given[0] in p.options)
        object.__setattr__(self, "cache", policy.name)
        for name in self._of_policies(("sinks", "window", *_OWN_OPTIONS)):
            if name not in policy.options:
                raise UserError(
                    f"{name} is {getattr(self, name)}: cache policy {policy.name} has no such "
                    f"option, but {', '.join(policy.options)}; leave it out"
                )

    def _of_policies(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

    def _check_reference(self) -> None:
        if self.reference is None or self.model.lower().endswith(".onnx"):
            return
        raise UserError(
            f"reference is {self.reference}: a checkpoint such as {self.model} is its own "
            "reference, only an .onnx file has another; leave it out"
        )

    def _check_calibration(self) -> None:
        if self.calibration is None:
            return
        if self.kv_cache_dtype == AUTO:
            raise UserError(
                f"calibration is {self.calibration}, and there is nothing to calibrate: give "
                "--kv-cache-dtype fp8 or int8, or leave it out"
            )
        if not self.calibration.is_file():
            raise UserError(
                f"calibration {self.calibration} is not a file: name a text like those that the "
                "model will read, or leave it out"
            )

    def _check_output(self, output: Path) -> None:
        """Writing a package replaces its directory, which must not hold the source."""
        for held in filter(None, (self.model, self.reference)):
            source = Path(held).resolve()
            if source.exists() and output.resolve() in (source, *source.parents):
                raise UserError(
                    f"output {output} holds the model {held}: the package would replace it; "
                    "choose another directory with -o"
                )

    def default_output(self) -> Path:
        """Where the package goes if nobody says: ./MODEL-METHOD-TARGET."""
        name = Path(self.model).stem if self.model.endswith(".onnx") else _last_part(self.model)
        target = format_size(self.target) if self.target is not None else None
        parts = (name, self.method or (None if self.cache else "as-trained"), self.cache, target)
        return Path("-".join(part for part in parts if part))


def build_recipe(
    given: Mapping[str, Any],
    *,
    file: Path | None = None,
    settings: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a command line: `given` by field name (nulls are "not given"), the `--recipe`
    file and the `--set` texts; `options` are the Python API's, by the file's keys.

    Raises UserError that names the layer, the value and the fix.
    """
    layers = [_read_file(file)] if file is not None else []
    layers += [_read_setting(text) for text in settings]
    layers.append(_fields(options or {}))
    layers.append({key: value for key, value in given.items() if value is not None})
    merged: dict[str, Any] = {}
    for layer in layers:
        parameters = {**merged.get("parameters", {}), **layer.get("parameters", {})}
        merged = {**merged, **layer, "parameters": parameters}
    return Recipe(**{key: value for key, value in merged.items() if value is not None})


def _read_file(path: Path) -> dict[str, Any]:
    """Recipe fields of a YAML file."""
    import yaml  # type: ignore[import-untyped, unused-ignore]

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"recipe {path} cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {_one_line(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(
            f"recipe {path} holds {tree!r}: it must hold keys such as method and target"
        )
    try:
        return _fields(tree)
    except UserError as error:
        raise UserError(f"recipe {path}: {error}") from None


def _read_setting(text: str) -> dict[str, Any]:
    """Recipe fields of one `--set a.b=c`; the value is read as YAML."""
    import yaml  # type: ignore[import-untyped, unused-ignore]

    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise UserError(f"--set {text!r} is not KEY=VALUE: write for example scaling.beta_fast=16")
    try:
        tree: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text!r} has no valid YAML value: {_one_line(error)}") from None
    for key in reversed(keys):
        tree = {key: tree}
    try:
        return _fields(tree)
    except UserError as error:
        raise UserError(f"--set {text}: {error}") from None


def _fields(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Recipe fields of one layer in the YAML schema, converted; null stays null."""
    _check_keys(tree, (*_CONVERTERS, "scaling", "validate"), where="")
    values = {
        key: None if value is None else _CONVERTERS[key](value, key)
        for key, value in tree.items()
        if key in _CONVERTERS
    }
    validation = _section(tree, "validate")
    _check_keys(validation, ("enabled", "tolerance"), where="validate.")
    if validation.get("enabled") is not None:
        values["validate"] = _boolean(validation["enabled"], "validate.enabled")
    if "tolerance" in validation:
        values["tolerance"] = _number(validation["tolerance"], "validate.tolerance")
    return _with_scaling(values, _section(tree, "scaling"))


def _with_scaling(values: dict[str, Any], section: Mapping[Any, Any]) -> dict[str, Any]:
    """`values` with the scaling section; its two keys that are options of their own move there."""
    parameters = {str(key): _plain(value) for key, value in section.items()}
    for key, option in (("factor", "factor"), ("original_max_position_embeddings", _ORIGINAL)):
        if key not in parameters:
            continue
        inner = parameters.pop(key)
        if inner is not None:
            inner = _CONVERTERS[option](inner, f"scaling.{key}")
        if values.get(option) not in (None, inner):
            raise UserError(
                f"{option} is {values[option]} but scaling.{key} is {inner}: they contradict each "
                "other; keep one"
            )
        values[option] = inner
    if parameters:
        values["parameters"] = parameters
    return values


def _section(tree: Mapping[Any, Any], name: str) -> Mapping[Any, Any]:
    section = tree.get(name)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise UserError(f"{name} is {section!r}: it must be a section with keys of its own")
    return section


def _check_keys(tree: Mapping[Any, Any], known: Sequence[str], *, where: str) -> None:
    from ctx_export.scaling._parameters import closest

    for key in tree:
        if key not in known:
            near = closest(str(key), known)
            raise UserError(f"unknown key {where}{key}{near} (known: {', '.join(known)})")


def _plain(value: Any) -> Any:
    """YAML 1.1 reads 1e6 as text, people mean a number; lists entry by entry."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _size(value: Any, key: str) -> int:
    return parse_size(value, what=key)


def _size_or_zero(value: Any, key: str) -> int:
    return 0 if str(value).strip() == "0" else parse_size(value, what=key)


def _number(value: Any, key: str) -> float | None:
    value = _plain(value)
    _check_number(key, value, None)
    return None if value is None else float(value)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{key} is {value!r}: it must be text")
    return value


def _path(value: Any, key: str) -> Path:
    return value if isinstance(value, Path) else Path(_text(value, key))


def _boolean(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{key} is {value!r}: it must be true or false")
    return value


_ORIGINAL = "original_context"
_COUNTS = {
    "target": 1,
    "original_context": 1,
    "sinks": 0,
    "window": 0,
    "memory_tokens": 1,
    "memory_block": 1,
    "landmark_block": 1,
    "landmark_topk": 1,
    "landmark_token": 0,
    "group": 1,
    "neighbor": 1,
    "chunk": 1,
    "max_batch": 1,
    "max_chunk": 1,
}
# Options that belong to one cache policy each.
_OWN_OPTIONS = (
    "memory_tokens",
    "memory_block",
    "landmark_block",
    "landmark_topk",
    "landmark_token",
    "landmark_shared",
    "group",
    "neighbor",
    "chunk",
)
# The keys of a recipe file outside its sections, with what turns their values into fields.
_CONVERTERS: dict[str, Callable[[Any, str], Any]] = {
    "model": _text,
    "method": _text,
    "target": _size,
    "factor": _number,
    "original_context": _size,
    "sinks": _size_or_zero,
    "window": _size_or_zero,
    "cache": _text,
    "memory_tokens": _size,
    "memory_block": _size,
    "landmark_block": _size,
    "landmark_topk": _size,
    "landmark_token": _size_or_zero,
    "landmark_shared": _boolean,
    "group": _size,
    "neighbor": _size,
    "chunk": _size,
    "precision": _text,
    "kv_cache_dtype": _text,
    "calibration": _path,
    "engine": _text,
    "io": _text,
    "copy_weights": _boolean,
    "max_batch": _size,
    "max_chunk": _size,
    "reference": _text,
    "triton_repository": _path,
}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise UserError(f"{name} is {value!r}: it must be one of {', '.join(choices)}")


def _check_number(name: str, value: Any, least: float | None) -> None:
    from ctx_export.scaling._parameters import number

    if value is not None:
        number(value, name, minimum=least)


def _last_part(model: str) -> str:
    """Name of a checkpoint: a directory's own name, or what follows the owner in a hub id."""
    path = Path(model)
    return (path.resolve().name if path.is_dir() else path.name) or "model"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
