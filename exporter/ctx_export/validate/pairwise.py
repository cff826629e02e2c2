"""A whole sequence in PyTorch, pair by pair from the position and visibility rules, with no cache.

transformers' own model runs every layer except what lies between the projections and the attended
values: its rotary module is made to do nothing, and its attention is `pairwise_attention`'s.
For every query the rules of `visibility` list the tokens seen and the positions that query and
keys are rotated to; nothing is shared with the graph, the runtimes or the kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctx_export.core.errors import UserError
from ctx_export.core.rope_settings import WHOLE
from ctx_export.frontends.attention_backend import (
    attention_module,
    check_replaceable,
    decoder_layers,
)
from ctx_export.frontends.checkpoint import stated_kv_heads
from ctx_export.validate.older_attention import ROWS, per_head, replace_attention
from ctx_export.validate.pairwise_attention import Attention, Cached, Scores
from ctx_export.validate.pairwise_landmark import LandmarkAttention
from ctx_export.validate.quantised import CacheNumbers
from ctx_export.validate.rope_parameters import Scaling
from ctx_export.validate.rope_tables import held_table, transformers_table
from ctx_export.validate.torch_reference import (
    PROBE_LIMIT,
    TORCH_TYPES,
    has_kinds,
    head_dimension,
    load_config,
    load_model,
    rotary_owner,
)
from ctx_export.validate.turning import Heads, Table
from ctx_export.validate.visibility import Choosing, Rule, causal

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_IMPLEMENTATION = "ctx_pairwise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What the tokens from position `start` on may see of those before: per layer the unrotated
    keys and the values [1,Hkv,P,D] of `tokens` [P], in order."""

    keys: tuple[Floats, ...]
    values: tuple[Floats, ...]
    tokens: tuple[Ints, ...]
    start: int


class PairwiseReference:
    """transformers' model of a checkpoint under a package's rules, one per layer.

    `table` is the package's, or one per layer where their kinds have tables of their own.
    `weights` is the precision that the weights are rounded to, `compute` the one that the model
    runs in. Attention is float64; for a low `compute` what PyTorch would store is rounded to it:
    rotated queries and keys, and the softmax. `by_layer` holds one layer's weights at a time.
    """

    def __init__(
        self,
        checkpoint: Path,
        rules: Sequence[Rule | Choosing],
        table: Table | Sequence[Table],
        *,
        weights: str = "fp32",
        compute: str = "fp32",
        by_layer: bool = False,
    ) -> None:
        import torch

        _register()
        self._config = config = load_config(checkpoint)
        if by_layer:
            from ctx_export.validate.layerwise import load_by_layer

            self._model = load_by_layer(checkpoint, config, weights, compute)
        else:
            self._model = load_model(checkpoint, config, weights, compute)
        self._owner = rotary_owner(self._model)
        self._modules = decoder_layers(self._model)[1]
        rotary = self._owner.rotary_emb
        first = attention_module(self._modules[0])
        rotary.forward = _no_rotation(rotary, first)
        tables = [table] * len(rules) if callable(table) else list(table)
        rounding = None if compute == "fp32" else getattr(torch, TORCH_TYPES[compute])
        self.heads = tuple(
            Heads(
                head_dim=head_dimension(config),
                count=len(own(1)[0]),
                interleaved=is_interleaved(first),
            )
            for own in tables
        )
        self._layers: list[_Layer] = []
        parts = zip(self._modules, rules, tables, self.heads, strict=True)
        for layer, rule, own, heads in parts:
            attention = _attention_by(rule, own, heads, rounding)
            self._layers.append(_Layer(attention, stated_kv_heads(checkpoint)))
            attention_module(layer).pairwise = self._layers[-1]
        self._replace_attention()

    def _replace_attention(self) -> None:
        """Every layer's own attention in place of the model's."""
        own = [
            replace_attention(attention_module(module), _attend_by(layer))
            for module, layer in zip(self._modules, self._layers, strict=True)
        ]
        if not all(own):
            check_replaceable(self._model)
            self._model.config._attn_implementation = _IMPLEMENTATION

    @property
    def layers(self) -> int:
        return len(self._layers)

    @property
    def vocab(self) -> int:
        return int(self._model.config.vocab_size)

    def hold(self, numbers: Sequence[CacheNumbers] | None) -> None:
        """Read keys and values back as caches of these `numbers` per layer keep them, from now on;
        None: as they are."""
        held: Sequence[CacheNumbers | None] = numbers or [None] * self.layers
        for layer, own in zip(self._layers, held, strict=True):
            layer.numbers = own

    def watch(self, layer_done: Callable[[], None]) -> None:
        """Call `layer_done` after each of the model's `layers` in every forward."""
        for layer in self._modules:
            layer.register_forward_hook(lambda *_: layer_done())

    def transformers_table(self, scaling: Scaling, length: int) -> tuple[Floats, float]:
        """transformers' inv_freq [F] and multiplier of a forward of `length` tokens."""
        return transformers_table(type(self._owner.rotary_emb), self._config, scaling, length)

    def own_tables(self) -> tuple[tuple[Floats, float] | None, ...]:
        """Per layer transformers' table of its kind; None for the kind that is scaled."""
        if not has_kinds(self._config):
            return (None,) * self.layers
        rotary = type(self._owner.rotary_emb)(self._config)
        kinds = self._config.layer_types
        return tuple(None if kind == WHOLE else held_table(rotary, kind) for kind in kinds)

    def logits(
        self,
        token_ids: ArrayLike,
        lengths: ArrayLike | None = None,
        *,
        rows: Sequence[int] | None = None,
    ) -> Floats:
        """Logits [R,V] of `rows` (default all) of one forward over tokens [N].

        `lengths` [N] are the rope lengths of the queries (default: N, as when all are planned).
        """
        return self._forward(token_ids, lengths, rows, None)

    def probe(self, past: Past, token_ids: ArrayLike, lengths: ArrayLike | None = None) -> Floats:
        """Logits [N,V] of up to 64 tokens that follow `past`; `lengths` as in `logits`."""
        tokens = np.asarray(token_ids).shape[-1]
        if tokens > PROBE_LIMIT:
            raise UserError(f"a probe of {tokens} tokens: give at most {PROBE_LIMIT}")
        return self._forward(token_ids, lengths, None, past)

    def own_past(self, token_ids: ArrayLike) -> Past:
        """The unrotated keys and the values that the model itself computes for [N] tokens."""
        self._forward(token_ids, None, [0], None)
        computed = [layer.computed for layer in self._layers]
        count = computed[0][0].shape[1]
        keys, values = (
            tuple(pair[part][None].float().numpy().copy() for pair in computed) for part in (0, 1)
        )
        tokens = (np.arange(count),) * self.layers
        return Past(keys=keys, values=values, tokens=tokens, start=count)

    def margins(self) -> NDArray[np.float64]:
        """How clearly the queries [N] of the last forward chose what they read, over all layers:
        see `LandmarkAttention`; infinite where nothing is chosen."""
        chosen = [layer.margins for layer in self._layers if layer.margins]
        return np.min(chosen, axis=0) if chosen else np.array(np.inf)

    def _forward(
        self,
        token_ids: ArrayLike,
        lengths: ArrayLike | None,
        rows: Sequence[int] | None,
        past: Past | None,
    ) -> Floats:
        import torch

        ids = np.asarray(token_ids, np.int64).reshape(1, -1)
        start = 0 if past is None else past.start
        positions = np.arange(start, start + ids.shape[1])
        end = positions[-1] + 1 if lengths is None else lengths
        used = np.broadcast_to(np.asarray(end, np.int64), positions.shape)
        for index, layer in enumerate(self._layers):
            layer.begin(used, positions, past, index)
        keep = 0 if rows is None else torch.tensor(list(rows), dtype=torch.int64)
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.from_numpy(ids), use_cache=False, logits_to_keep=keep
            )
        logits: Floats = output.logits[0].float().numpy()
        return logits


def _attention_by(rule: Rule | Choosing, table: Table, heads: Heads, rounding: Any) -> Attention:
    if isinstance(rule, Choosing):
        return LandmarkAttention(
            rule=causal, choosing=rule, table=table, heads=heads, rounding=rounding
        )
    return Attention(rule=rule, table=table, heads=heads, rounding=rounding)


class _Layer:
    """One layer's attention with what the forward in progress gives it."""

    def __init__(self, attention: Attention, kv_heads: int) -> None:
        self._attention, self._kv_heads = attention, kv_heads
        self._lengths: Ints = np.zeros(0, np.int64)
        self._tokens: Ints = np.zeros(0, np.int64)
        self._past: tuple[Floats, ...] = ()
        self.numbers: CacheNumbers | None = None
        self.computed: tuple[Any, Any] = ((), ())  # keys and values [Hkv,N,D] of the last forward

    @property
    def margins(self) -> list[float]:
        own = self._attention
        return own.margins if isinstance(own, LandmarkAttention) else []

    def begin(self, lengths: Ints, positions: Ints, past: Past | None, index: int) -> None:
        """A forward of tokens at `positions` [N] with `lengths` [N], after layer `index` of
        `past`."""
        self._lengths, self._tokens, self._past = lengths, positions, ()
        if past is not None:
            self._past = (past.keys[index][0], past.values[index][0])
            self._tokens = np.concatenate([past.tokens[index], positions])

    def __call__(self, query: Any, key: Any, value: Any, how: Scores) -> Any:
        """Attended values [Hq,N,Dv] of heads [H,N,D], float64."""
        import torch

        key, value = (per_head(part, self._kv_heads) for part in (key, value))
        self.computed = (key, value)
        parts = [key, value]
        for index, past in enumerate(self._past):
            new = parts[index]
            old = torch.from_numpy(np.ascontiguousarray(past)).to(new.dtype)
            parts[index] = torch.cat([old, new], dim=1)
        cached = Cached(keys=parts[0], values=parts[1], tokens=self._tokens)
        if self.numbers is not None:
            cached = self._attention.kept(cached, self.numbers)
        return self._attention.attend(query, cached, self._lengths, how)


def is_interleaved(attention: Any) -> bool:
    """Whether an attention module of transformers turns pairs (2i, 2i+1) rather than (i, i+F).

    Asked of its own function: dim 0 turned by a quarter moves to its partner.
    """
    return int(_quarter_turn(attention)[0].flatten().abs().argmax()) == 1


def _quarter_turn(attention: Any) -> tuple[Any, int]:
    """Dim 0 of 8 turned by a quarter, and how many columns of cosines that takes: 8, or 4 where
    one serves both dims of a pair."""
    import torch

    if hasattr(attention, ROWS):
        return torch.eye(8)[1], 4  # pairs side by side, one cosine a pair
    module = sys.modules[type(attention).__module__]
    apply = getattr(module, "apply_rotary_pos_emb", None)
    if apply is None:
        raise UserError(
            f"{type(attention).__name__} does not rotate by apply_rotary_pos_emb: a model of this "
            "kind cannot be validated with this method in this version"
        )
    x = torch.zeros(1, 1, 1, 8)
    x[..., 0] = 1
    for columns in (8, 4):
        try:
            turned, _ = apply(x, x, torch.zeros(1, 1, columns), torch.ones(1, 1, columns))
        except RuntimeError:
            continue
        return turned, columns
    raise UserError(
        f"{type(attention).__name__} takes neither a cosine per dim nor one per pair: a model of "
        "this kind cannot be validated with this method in this version"
    )


def _no_rotation(rotary: Any, attention: Any) -> Callable[..., tuple[Any, Any]]:
    """A rotary module's forward that gives cos and sin of angle 0, [B,N,rotary_dim] or a column a
    pair; some modules are asked for a kind of layers."""
    columns = _quarter_turn(attention)[1] // 4

    def forward(x: Any, position_ids: Any, layer_type: str = "") -> tuple[Any, Any]:
        import torch

        held = f"{layer_type}_inv_freq" if layer_type else "inv_freq"
        shape = (*position_ids.shape, columns * len(getattr(rotary, held)))
        return torch.ones(shape, dtype=x.dtype), torch.zeros(shape, dtype=x.dtype)

    return forward


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **options: Any
) -> tuple[Any, None]:
    """transformers' attention interface: heads [1,H,N,D] in, [1,N,Hq,D] out."""
    how = Scores(
        scaling=scaling, softcap=options.get("softcap") or 0.0, sinks=options.get("s_aux")
    )
    out = module.pairwise(query[0], key[0], value[0], how)
    return out.transpose(0, 1)[None].to(query.dtype).contiguous(), None


def _attend_by(layer: _Layer) -> Callable[[Any, Any, Any, float], Any]:
    """A layer's attention over heads [1,H,N,D], in the shape and type of the query."""

    def attend(query: Any, key: Any, value: Any, scaling: float) -> Any:
        out = layer(query[0], key[0], value[0], Scores(scaling=scaling))
        return out[None].to(query.dtype)

    return attend


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(_IMPLEMENTATION, lambda *args, **kwargs: None)
