"""What a runtime knows of a package: tensor names, shapes and limits, read from its manifest."""

from __future__ import annotations

from dataclasses import dataclass

from ctx_export.core.errors import UserError
from ctx_export.core.manifest import BOUNDED, CacheInfo, Manifest, TensorInfo
from ctx_export.runtime.cache_codec import CacheCodec, codecs

_REQUIRED = ("input_ids", "seen", "new", "logit_rows", "logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """One layer's cache tensors, [batch, kv_heads, slots, head_dim]; `slots` None: it grows."""

    past_key: str
    past_value: str
    present_key: str
    present_value: str
    kv_heads: int
    head_dim: int
    slots: int | None
    cache: CacheInfo
    codecs: tuple[CacheCodec, CacheCodec]  # of keys and of values


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """A package's native I/O. Names are the graph's; `rope_length` is None where it has none."""

    input_ids: str
    seen: str
    new: str
    logit_rows: str
    rope_length: str | None
    logits: str
    logits_dtype: str
    layers: tuple[LayerCache, ...]
    cache: CacheInfo
    heads: int
    vocab: int
    max_context: int | None  # None: bounded caches take any number of tokens
    max_batch: int
    max_chunk: int

    @property
    def bounded(self) -> bool:
        """Whether no layer's cache has a maximum length."""
        return self.cache.policy == BOUNDED

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Contract:
        """Raises UserError where the manifest lacks what a session needs."""
        missing = [role for role in _REQUIRED if not manifest.has_role(role)]
        if missing:
            raise UserError(
                f"the package's graph has no input or output of role {', '.join(missing)}: "
                "sessions need the native contract, export again without --io genai"
            )
        name = {role: manifest.of_role(role)[0].name for role in _REQUIRED}
        rope = manifest.of_role("rope_length")
        return cls(
            **name,
            rope_length=rope[0].name if rope else None,
            logits_dtype=manifest.of_role("logits")[0].dtype,
            layers=_layers(manifest),
            cache=manifest.cache,
            heads=int(manifest.model["heads"]),
            vocab=int(manifest.model["vocab"]),
            max_context=manifest.max_context,
            max_batch=manifest.max_batch,
            max_chunk=manifest.max_chunk,
        )


def _layers(manifest: Manifest) -> tuple[LayerCache, ...]:
    groups = [
        {tensor.layer: tensor for tensor in manifest.of_role(role)}
        for role in ("past_key", "past_value", "present_key", "present_value")
    ]
    layers = sorted(groups[0])
    if not layers or any(sorted(group) != layers for group in groups):
        raise UserError(
            "the manifest's past and present caches do not pair up: export the package again"
        )
    if layers != list(range(len(manifest.layers))):
        raise UserError(
            f"the manifest describes the caches of {len(manifest.layers)} layers and names "
            f"tensors for {len(layers)}: export the package again"
        )
    scales = manifest.cache_scales or (None,) * len(layers)
    return tuple(
        _layer(
            [group[layer] for group in groups],
            manifest.layers[layer],
            codecs(groups[0][layer].dtype, scales[layer]),
        )
        for layer in layers
    )


def _layer(
    tensors: list[TensorInfo], cache: CacheInfo, both: tuple[CacheCodec, CacheCodec]
) -> LayerCache:
    shape = tensors[0].shape
    if len(shape) != 4 or not (isinstance(shape[1], int) and isinstance(shape[3], int)):
        raise UserError(
            f"cache {tensors[0].name} has the shape {list(shape)}, not [batch, KV heads, slots, "
            "head dimension]: export the package again"
        )
    slots = shape[2] if isinstance(shape[2], int) else None
    if slots is None and cache.policy == BOUNDED:
        slots = cache.capacity
    names = dict(
        zip(
            ("past_key", "past_value", "present_key", "present_value"),
            (tensor.name for tensor in tensors),
            strict=True,
        )
    )
    return LayerCache(
        **names,
        kv_heads=shape[1],
        head_dim=shape[3],
        slots=slots,
        cache=cache,
        codecs=both,
    )
