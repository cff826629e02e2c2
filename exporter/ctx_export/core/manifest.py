"""`manifest.json`: all that a runtime, in Python or C++, may know about a package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ctx_export.core.cache_type import LayerScales, cache_type
from ctx_export.core.errors import UserError
from ctx_export.core.rules import Rule, rule_of_json

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
ENGINE_NAME = "model.engine"
ROLES = (
    "input_ids",  # [batch, tokens] int64, right-padded
    "seen",  # [batch] int64: tokens of the sequence before this call
    "new",  # [batch] int64: rows of this call that are tokens
    "rope_length",  # [batch] int64, methods whose table depends on the length
    "attention_mask",  # [batch, total] int64, of io_contract genai: what seen and new follow from
    "logit_rows",  # [batch, rows] int64: rows that go through the vocabulary projection
    "past_key",
    "past_value",
    "logits",
    "present_key",
    "present_value",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One graph input or output. `shape` holds numbers and the names of symbolic dimensions
    (batch, tokens, slots, rows); `layer` is the cache's layer index, -1 elsewhere."""

    name: str
    dtype: str  # float32, float16, bfloat16, int64; caches also float8e4m3fn, int8
    shape: tuple[int | str, ...]
    role: str
    layer: int = -1


FULL, BOUNDED = "full", "bounded"  # slot = token up to a maximum; sinks and a ring
CAUSAL = "causal"  # the rule of a cache that forgets nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """Layout of one layer's cache. `capacity` is the baked number of slots per sequence.

    Token t lies in slot t of a full cache; in a bounded one in slot t below `sinks` and in slot
    sinks + (t − sinks) mod (capacity − sinks) from there on. The rules of `core.rules` that put
    more than tokens there have layouts of their own.
    """

    policy: str  # FULL or BOUNDED
    sinks: int
    window: int  # tokens a query sees back, itself included; 0: all
    capacity: int
    keys: str  # rotated, unrotated
    rule: str = CAUSAL  # or the cache policy's name
    sink_position: int | None = None  # largest position at which queries meet the sinks
    parameters: Rule | None = None  # of a rule of `core.rules`

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> CacheInfo:
        """Raises TypeError for a layer that is none."""
        parameters = rule_of_json(raw.get("rule", CAUSAL), raw.get("parameters"))
        return cls(**{**raw, "parameters": parameters})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Contents of manifest.json; see DESIGN for the meaning of each entry."""

    model: Mapping[str, Any]  # family, layers, heads, kv_heads, head_dim, vocab, original_context,
    # bos_token_id, eos_token_ids
    method: str
    scaling: Mapping[str, Any]  # theta, rotary_dim, parameters, multiplier, inv_freq, and
    # length_table, None where the frequencies do not follow the length
    factor: float
    max_context: int | None  # None: bounded caches take any number of tokens
    max_batch: int
    max_chunk: int
    layers: tuple[CacheInfo, ...]
    precision: str  # fp32, fp16, bf16
    io: tuple[TensorInfo, ...]
    weights: Mapping[str, Any]  # files, storage: cloned | linked | copied | converted
    generator: Mapping[str, str]  # versions of ctx-export and of what it was built with
    # Of an ONNX file: file, producer, opset, quantised_weights, reference; None: of a checkpoint.
    source: Mapping[str, Any] | None = None
    # Of a quantised cache: dtype, calibration (on what, in words), and layers with the scales key
    # and value, one per KV head; None: the cache has the precision's type.
    kv_cache: Mapping[str, Any] | None = None
    engine: Mapping[str, Any] | None = None
    plugins: Mapping[str, Any] | None = None
    validation: Mapping[str, Any] | None = None
    io_contract: str = "native"  # whose names and meanings `io` has: native, genai
    format_version: int = FORMAT_VERSION

    @property
    def cache_dtype(self) -> str:
        """Element type of the caches."""
        return self.of_role("past_key")[0].dtype

    @property
    def quantised(self) -> bool:
        """Whether the caches hold one byte an element, with scales."""
        return cache_type(self.cache_dtype) is not None

    @property
    def cache_scales(self) -> tuple[LayerScales, ...] | None:
        """Per layer the scales of a quantised cache; raises UserError where they do not fit."""
        if not self.quantised:
            return None
        try:
            stated = [
                LayerScales(key=tuple(layer["key"]), value=tuple(layer["value"]))
                for layer in (self.kv_cache or {})["layers"]
            ]
        except (KeyError, TypeError) as error:
            raise UserError(f"the manifest's kv_cache lacks {error}: export again") from None
        sizes = {len(part) for scales in stated for part in (scales.key, scales.value)}
        if len(stated) != len(self.layers) or sizes != {int(self.model["kv_heads"])}:
            raise UserError(
                f"the manifest's kv_cache has scales of {len(stated)} layers and {sorted(sizes)} "
                f"heads, the model {len(self.layers)} and {self.model['kv_heads']}: export again"
            )
        return tuple(stated)

    @property
    def cache(self) -> CacheInfo:
        """The cache that limits the package: a full one if any layer has one, else the smallest
        ring's."""
        full = [cache for cache in self.layers if cache.policy == FULL]
        return full[0] if full else min(self.layers, key=lambda cache: cache.capacity)

    def of_role(self, role: str) -> tuple[TensorInfo, ...]:
        """Tensors of one role, ordered by layer."""
        return tuple(sorted((t for t in self.io if t.role == role), key=lambda t: t.layer))

    def has_role(self, role: str) -> bool:
        return any(t.role == role for t in self.io)

    def to_json(self) -> dict[str, Any]:
        """JSON values; `cache` repeats the limiting layer's for readers that want one."""
        return {**asdict(self), "cache": asdict(self.cache)}

    def save(self, directory: Path) -> None:
        text = json.dumps(self.to_json(), indent=1, sort_keys=False)
        (directory / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Read a package's manifest; raises UserError where it is missing, broken or too new."""
        path = Path(directory) / FILE_NAME
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{directory} is not a package: it has no {FILE_NAME}; make one with ctx-export"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; export the package again") from None
        return cls.from_json(raw, path)

    @classmethod
    def from_json(cls, raw: Any, path: Path) -> Manifest:
        if not isinstance(raw, dict) or raw.get("format_version") != FORMAT_VERSION:
            version = raw.get("format_version") if isinstance(raw, dict) else None
            raise UserError(
                f"{path} has format version {version!r}, this ctx-export reads {FORMAT_VERSION}: "
                "export the package again with this version"
            )
        known = {f.name for f in fields(cls)}
        try:
            values = {name: value for name, value in raw.items() if name in known}
            values["layers"] = tuple(CacheInfo.from_json(layer) for layer in raw["layers"])
            values["io"] = tuple(
                TensorInfo(**{**entry, "shape": tuple(entry["shape"])}) for entry in raw["io"]
            )
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a valid manifest: {error}; export again") from None
