"""Stage 4: what will be baked. Pure and printable; every bad combination is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import CacheInfo, TensorInfo
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.recipe import Recipe
from ctx_export.core.sizes import format_size
from ctx_export.scaling import resolve
from ctx_export.scaling.base import FrequencyTable

DTYPE_OF = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
BYTES_OF = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the rewrite, the targets and the manifest need, decided."""

    spec: ModelSpec
    method: str
    factor: float
    parameters: Mapping[str, Any]
    table: FrequencyTable
    theta: float
    original_context: int
    max_context: int
    max_batch: int
    max_chunk: int
    precision: str
    cache: CacheInfo
    windows: tuple[int, ...]  # per layer, tokens, 0: unlimited
    io: tuple[TensorInfo, ...]

    @property
    def cache_bytes(self) -> int:
        """Bytes of one sequence's keys and values at full capacity (FORMULAS section 4)."""
        spec = self.spec
        per_slot = 2 * spec.layers * spec.kv_heads * spec.head_dim * BYTES_OF[self.precision]
        return per_slot * self.cache.capacity

    def describe(self) -> str:
        """The plan for people, a line per decision."""
        table = self.table
        rows = {
            "model": f"{self.spec.family}, {self.spec.layers} layers, {self.spec.heads} heads on "
            f"{self.spec.kv_heads}, head dimension {self.spec.head_dim}",
            "method": f"{self.method}, factor {self.factor:g}, theta {self.theta:g}",
            "parameters": ", ".join(f"{k} {_short(v)}" for k, v in self.parameters.items())
            or "none",
            "table": f"{len(table.inv_freq)} frequencies, {table.inv_freq.max():.6g} to "
            f"{table.inv_freq.min():.6g} rad/token, multiplier {table.multiplier:.6g}"
            + "".join(f", {k} {_short(v)}" for k, v in table.details.items()),
            "context": f"{format_size(self.original_context)} trained, "
            f"{format_size(self.max_context)} baked ({self.max_context} tokens)",
            "cache": f"{self.cache.policy}, {self.cache.capacity} slots, {self.cache.keys} keys, "
            f"{self.cache_bytes} bytes per sequence",
            "windows": _windows(self.windows),
            "precision": self.precision,
            "limits": f"batch {self.max_batch}, chunk {self.max_chunk}",
            "inputs": ", ".join(_signature(self.io, past=True)),
            "outputs": ", ".join(_signature(self.io, past=False)),
        }
        return "\n".join(f"{name + ':':<12} {text}" for name, text in rows.items())

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; the table in full."""
        return {
            "model": {**asdict(self.spec), "rope": asdict(self.spec.rope)},
            "method": self.method,
            "factor": self.factor,
            "scaling": self.scaling_json(),
            "original_context": self.original_context,
            "max_context": self.max_context,
            "max_batch": self.max_batch,
            "max_chunk": self.max_chunk,
            "precision": self.precision,
            "cache": {**asdict(self.cache), "bytes_per_sequence": self.cache_bytes},
            "windows": list(self.windows),
            "io": [asdict(tensor) for tensor in self.io],
        }

    def scaling_json(self) -> dict[str, Any]:
        """The manifest's `scaling` entry."""
        return {
            "theta": self.theta,
            "rotary_dim": 2 * len(self.table.inv_freq),
            "parameters": dict(self.parameters),
            "multiplier": self.table.multiplier,
            "inv_freq": [float(f) for f in self.table.inv_freq],
        }


def make_plan(spec: ModelSpec, recipe: Recipe) -> Plan:
    """Decide everything about `recipe` on a model; raises UserError for what cannot work."""
    if recipe.sinks or recipe.window:
        raise UserError(
            f"sinks {recipe.sinks} and window {recipe.window}: bounded caches are not available "
            "in this version; leave --sinks and --window out"
        )
    method = recipe.method or spec.rope.method
    own = method == spec.rope.method
    base = dict(spec.rope.parameters) if own else {}
    if recipe.factor is not None or (recipe.method and recipe.target):
        base.pop("factor", None) if method != "longrope" else None
    shape = spec.rotary_shape(recipe.original_context)
    target = recipe.target or spec.max_position_embeddings
    if target < shape.original_context:
        raise UserError(
            f"target {target} is below the original context {shape.original_context}: give "
            f"--target {shape.original_context} or more, or --original-context"
        )
    resolved = resolve(
        method,
        shape,
        target,
        recipe.factor,
        {**base, **recipe.parameters},
        where="rope_scaling" if own and not recipe.parameters else "scaling",
    )
    precision = recipe.precision or spec.precision
    max_chunk = min(recipe.max_chunk, target)
    return Plan(
        spec=spec,
        method=resolved.method.name,
        factor=resolved.factor,
        parameters={k: v for k, v in asdict(resolved.parameters).items() if v is not None},
        table=resolved.table,
        theta=shape.theta,
        original_context=shape.original_context,
        max_context=target,
        max_batch=recipe.max_batch,
        max_chunk=max_chunk,
        precision=precision,
        cache=CacheInfo(policy="full", sinks=0, window=0, capacity=target, keys="rotated"),
        windows=spec.windows,
        io=package_io(spec, precision),
    )


def package_io(spec: ModelSpec, precision: str) -> tuple[TensorInfo, ...]:
    """Graph inputs and outputs of a package, in graph order."""
    tokens = [
        TensorInfo(name="input_ids", dtype="int64", shape=("batch", "tokens"), role="input_ids"),
        TensorInfo(name="seen", dtype="int64", shape=("batch",), role="seen"),
        TensorInfo(name="new", dtype="int64", shape=("batch",), role="new"),
        TensorInfo(name="logit_rows", dtype="int64", shape=("batch", "rows"), role="logit_rows"),
    ]
    shape = ("batch", spec.kv_heads, "slots", spec.head_dim)

    def cache(prefix: str, role: str) -> list[TensorInfo]:
        return [
            TensorInfo(
                name=f"{prefix}.{layer}.{part}",
                dtype=DTYPE_OF[precision],
                shape=shape,
                role=f"{role}_{part}",
                layer=layer,
            )
            for layer in range(spec.layers)
            for part in ("key", "value")
        ]

    logits = TensorInfo(
        name="logits",
        dtype=DTYPE_OF[precision],
        shape=("batch", "rows", spec.vocab),
        role="logits",
    )
    return (*tokens, *cache("past_key_values", "past"), logits, *cache("present", "present"))


def is_input(tensor: TensorInfo) -> bool:
    """Whether a tensor of the contract goes in."""
    return tensor.role != "logits" and not tensor.role.startswith("present")


def _signature(io: tuple[TensorInfo, ...], *, past: bool) -> list[str]:
    shown = [t for t in io if is_input(t) == past and t.layer <= 0]
    return [f"{t.name} {t.dtype}{list(t.shape)}" + (" …" if t.layer == 0 else "") for t in shown]


def _windows(windows: tuple[int, ...]) -> str:
    if not any(windows):
        return "none"
    return ", ".join(f"layer {i}: {w}" for i, w in enumerate(windows) if w)


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{len(value)} values]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
