"""Stage 4: what will be baked. Pure and printable; every bad combination is refused here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ctx_export.cache.base import ReachPolicy
from ctx_export.core.cache_plan import (
    CacheLimits,
    CacheRequest,
    cache_request,
    decide_reach,
    known_positions,
    layer_caches,
)
from ctx_export.core.cache_type import CACHE_TYPES, ELEMENT_BYTES, CacheType, LayerScales
from ctx_export.core.errors import UserError
from ctx_export.core.io_contract import GENAI, NATIVE, check_genai, genai_io
from ctx_export.core.manifest import BOUNDED, FULL, CacheInfo, TensorInfo
from ctx_export.core.model_spec import ModelSpec
from ctx_export.core.recipe import Recipe
from ctx_export.core.rope_settings import RopeSettings
from ctx_export.core.sizes import format_size
from ctx_export.scaling import find, resolve
from ctx_export.scaling._length_table import LengthTable
from ctx_export.scaling.base import FrequencyTable, Method, Resolved, span_factor

DTYPE_OF = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEFAULT_CHUNK = 1024  # new tokens of one call


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the rewrite, the targets and the manifest need, decided."""

    spec: ModelSpec
    method: str
    factor: float
    parameters: Mapping[str, Any]
    table: FrequencyTable
    tables: tuple[FrequencyTable, ...]  # per layer: `table`, or its own where layers differ
    length_table: LengthTable | None  # where frequencies follow the length; keys are unrotated
    theta: float
    original_context: int
    max_context: int | None  # None: bounded caches take any number of tokens
    max_batch: int
    max_chunk: int
    precision: str
    cache_type: CacheType | None  # of a quantised cache, None: of the precision's type
    caches: tuple[CacheInfo, ...]  # per layer
    io: tuple[TensorInfo, ...]
    io_contract: str = NATIVE  # what `io` becomes once the package is validated
    # Once a quantised cache is calibrated: per layer, and on what, in words.
    scales: tuple[LayerScales, ...] | None = None
    calibration: str | None = None

    @property
    def cache_dtype(self) -> str:
        """Element type of the caches."""
        return cache_dtype(self.precision, self.cache_type)

    @property
    def package_io(self) -> tuple[TensorInfo, ...]:
        """Inputs and outputs of the finished package."""
        return genai_io(self.io) if self.io_contract == GENAI else self.io

    @property
    def cache_bytes(self) -> int:
        """Bytes of one sequence's keys and values at full capacity (FORMULAS section 4)."""
        per_slot = 2 * self.spec.kv_heads * self.spec.head_dim * ELEMENT_BYTES[self.cache_dtype]
        return per_slot * sum(cache.capacity for cache in self.caches)

    @property
    def has_sink_query(self) -> bool:
        """Whether some layer's queries meet the sinks at another position than their own."""
        return any(cache.sink_position is not None for cache in self.caches)

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
            + (
                f"{format_size(self.max_context)} baked ({self.max_context} tokens)"
                if self.max_context is not None
                else "any number of tokens"
            ),
            "cache": f"{describe_caches(self.caches)}, {self.cache_dtype}, "
            f"{self.cache_bytes} bytes per sequence",
            "precision": self.precision,
            "limits": f"batch {self.max_batch}, chunk {self.max_chunk}",
            "inputs": ", ".join(_signature(self.package_io, past=True)),
            "outputs": ", ".join(_signature(self.package_io, past=False)),
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
            "kv_cache_dtype": self.cache_dtype,
            "layers": [asdict(cache) for cache in self.caches],
            "cache_bytes_per_sequence": self.cache_bytes,
            "io_contract": self.io_contract,
            "io": [asdict(tensor) for tensor in self.package_io],
        }

    def kv_cache_json(self) -> dict[str, Any] | None:
        """The manifest's `kv_cache` entry."""
        if self.cache_type is None or self.scales is None:
            return None
        return {
            "dtype": self.cache_dtype,
            "calibration": self.calibration,
            "layers": [asdict(layer) for layer in self.scales],
        }

    def _own_tables(self) -> list[dict[str, Any] | None] | None:
        """Per layer the table of its own, None where it has the package's; None for all."""
        if all(table is self.table for table in self.tables):
            return None
        return [
            None
            if table is self.table
            else {
                "multiplier": table.multiplier,
                "inv_freq": [float(f) for f in table.inv_freq],
            }
            for table in self.tables
        ]

    def scaling_json(self) -> dict[str, Any]:
        """The manifest's `scaling` entry."""
        return {
            "theta": self.theta,
            "rotary_dim": 2 * len(self.table.inv_freq),
            "parameters": dict(self.parameters),
            "multiplier": self.table.multiplier,
            "inv_freq": [float(f) for f in self.table.inv_freq],
            "layers": self._own_tables(),
            "length_table": None if self.length_table is None else self.length_table.to_json(),
        }


def make_plan(spec: ModelSpec, recipe: Recipe) -> Plan:
    """Decide everything about `recipe` on a model; raises UserError for what cannot work."""
    shape = spec.rotary_shape(recipe.original_context)
    request = cache_request(spec, recipe)
    target = recipe.target or request.span or spec.max_position_embeddings
    if recipe.target is not None or not request.bounded:
        _check_target(target, shape.original_context)
    method = find(recipe.method or spec.rope.method)
    span = max(target, shape.original_context)  # positions that the table is made for
    if isinstance(request.policy, ReachPolicy):
        if not request.bounded:
            span = known_positions(spec, recipe, method)
        elif recipe.method is None and recipe.factor is None:  # nothing is scaled to the target
            span = min(span, known_positions(spec, recipe, method))
    if request.bounded and method.length_table is not None:
        span = max(span, shape.original_context + 1)  # lengths are absolute and have no limit
    resolved = _resolve_scaling(spec, recipe, method, span)
    _check_lengths(request, resolved)
    if recipe.max_chunk is not None and not request.bounded and recipe.max_chunk > target:
        raise UserError(
            f"max_chunk is {recipe.max_chunk}, more than the target of {target} tokens: give "
            f"--max-chunk {target} or less"
        )
    max_chunk = recipe.max_chunk or min(DEFAULT_CHUNK, target)
    reach = None
    if isinstance(request.policy, ReachPolicy):
        reach = decide_reach(request.policy, recipe, span=span, target=target, max_chunk=max_chunk)
    _check_landmark(spec, recipe)
    keys = "rotated" if resolved.length_table is None else "unrotated"
    # onnxruntime-genai's caches grow: a layer's own window is then a mask over a full one.
    may_bound = method.bounded_cache and recipe.io != GENAI
    limits = CacheLimits(target=target, max_chunk=max_chunk, keys=keys, may_bound=may_bound)
    caches = layer_caches(spec, request, limits, reach)
    precision = recipe.precision or spec.precision
    kind = CACHE_TYPES.get(recipe.kv_cache_dtype)
    rope_length = resolved.length_table is not None
    if recipe.io == GENAI:
        check_genai(recipe, caches, method=method.name, by_length=rope_length)
    return Plan(
        spec=spec,
        method=method.name,
        factor=resolved.factor,
        parameters={k: v for k, v in asdict(resolved.parameters).items() if v is not None},
        table=resolved.table,
        tables=_layer_tables(spec, resolved),
        length_table=resolved.length_table,
        theta=shape.theta,
        original_context=shape.original_context,
        max_context=target if any(cache.policy == FULL for cache in caches) else None,
        max_batch=recipe.max_batch,
        max_chunk=max_chunk,
        precision=precision,
        cache_type=kind,
        caches=caches,
        io=package_io(spec, precision, caches, cache_type=kind, rope_length=rope_length),
        io_contract=recipe.io,
    )


def _check_lengths(request: CacheRequest, resolved: Resolved) -> None:
    """Frequencies that follow the length go with caches that keep every token as it is."""
    policy, method = request.policy, resolved.method
    if policy is None:
        return
    if isinstance(policy, ReachPolicy) and resolved.length_table is not None:
        raise UserError(
            f"method {method.name} changes its frequencies with the length, and {policy.name} "
            "works with one table: choose another method, such as yarn"
        )
    if not method.bounded_cache:
        raise UserError(
            f"method {method.name} changes its frequencies with the length, which has no limit "
            f"over a bounded cache: leave --sinks and --window out, or choose another method"
        )


def _check_landmark(spec: ModelSpec, recipe: Recipe) -> None:
    if recipe.landmark_token is not None and recipe.landmark_token >= spec.vocab:
        raise UserError(
            f"landmark_token is {recipe.landmark_token} and the vocabulary has {spec.vocab} "
            "tokens: give the id that the checkpoint was trained with as its landmark"
        )


def cache_dtype(precision: str, kind: CacheType | None) -> str:
    """Element type of caches of `kind`."""
    return DTYPE_OF[precision] if kind is None else kind.dtype


def _check_target(target: int, original_context: int) -> None:
    if target < original_context:
        raise UserError(
            f"target {target} is below the original context {original_context}: give "
            f"--target {original_context} or more, or --original-context"
        )


def _resolve_scaling(spec: ModelSpec, recipe: Recipe, method: Method, target: int) -> Resolved:
    """`method` at `target`, with the checkpoint's own parameters where it is its own method."""
    own = method.name == spec.rope.method
    base = dict(spec.rope.parameters) if own else {}
    replaced = recipe.factor is not None or (recipe.method and recipe.target)
    if replaced and method.default_factor is span_factor:
        base.pop("factor", None)  # another target has another factor
    return resolve(
        method.name,
        spec.rotary_shape(recipe.original_context),
        target,
        recipe.factor,
        {**base, **recipe.parameters},
        where="rope_scaling" if own and not recipe.parameters else "scaling",
    )


def _layer_tables(spec: ModelSpec, resolved: Resolved) -> tuple[FrequencyTable, ...]:
    """The resolved table for layers of the main settings; the others keep what they were trained
    with."""
    own: dict[int, FrequencyTable] = {}
    tables = []
    for layer in range(spec.layers):
        rope = spec.rope_of(layer)
        if rope == spec.rope:
            tables.append(resolved.table)
            continue
        if id(rope) not in own:
            own[id(rope)] = _own_table(spec, rope) if rope.rotates else _still(resolved.table)
        tables.append(own[id(rope)])
    return tuple(tables)


def _still(table: FrequencyTable) -> FrequencyTable:
    """The table of layers without positions, beside layers that have `table`: nothing turns."""
    return FrequencyTable(inv_freq=table.inv_freq * 0, multiplier=1.0)


def _own_table(spec: ModelSpec, rope: RopeSettings) -> FrequencyTable:
    """The table of layers with settings of their own."""
    shape = spec.rotary_shape(rope=rope)
    reach = max(spec.max_position_embeddings, shape.original_context)
    made = resolve(rope.method, shape, reach, None, rope.parameters, where="rope_scaling")
    if made.length_table is not None:
        raise UserError(
            f"some kind of layer has settings of its own of type {rope.method}, which follows the "
            "length of the text: only the layers that see every token may have those"
        )
    return made.table


def package_io(
    spec: ModelSpec,
    precision: str,
    caches: Sequence[CacheInfo],
    *,
    cache_type: CacheType | None = None,
    rope_length: bool = False,
) -> tuple[TensorInfo, ...]:
    """Graph inputs and outputs of a package, in graph order."""
    tokens = [
        TensorInfo(name="input_ids", dtype="int64", shape=("batch", "tokens"), role="input_ids"),
        TensorInfo(name="seen", dtype="int64", shape=("batch",), role="seen"),
        TensorInfo(name="new", dtype="int64", shape=("batch",), role="new"),
        TensorInfo(name="logit_rows", dtype="int64", shape=("batch", "rows"), role="logit_rows"),
    ]
    if rope_length:
        tokens.append(
            TensorInfo(name="rope_length", dtype="int64", shape=("batch",), role="rope_length")
        )

    def shape(layer: int) -> tuple[int | str, ...]:
        """A ring's size is baked, a full cache grows."""
        bounded = caches[layer].policy == BOUNDED
        slots = caches[layer].capacity if bounded else "slots"
        return ("batch", spec.kv_heads, slots, spec.head_dim)

    def cache(prefix: str, role: str) -> list[TensorInfo]:
        return [
            TensorInfo(
                name=f"{prefix}.{layer}.{part}",
                dtype=cache_dtype(precision, cache_type),
                shape=shape(layer),
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


def describe_caches(caches: Sequence[CacheInfo]) -> str:
    """Each kind of cache with the number of its layers."""
    return "; ".join(f"{count} × {_cache(info)}" for info, count in Counter(caches).items())


def _cache(info: CacheInfo) -> str:
    seen = f"{info.window} tokens back" if info.window else "every token"
    sinks = f"{info.sinks} sinks and " if info.sinks else ""
    own = f", {info.parameters.describe()}" if info.parameters is not None else ""
    return (
        f"{info.policy} ({info.rule}: {sinks}{seen}{own}), {info.capacity} slots, {info.keys} keys"
    )


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{len(value)} values]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
