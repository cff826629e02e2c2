"""The PyTorch side: transformers' own model, with only its rotary forward replaced.

The replacement computes angles, cos and sin in float64, because the float32 angles of transformers
drift by 2e-3 of the logit scale at position 131k. The unmodified rotary module is kept beside it,
so that its error can be printed.
"""

from __future__ import annotations

import copy
import enum
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctx_export.core.errors import UserError
from ctx_export.core.rope_settings import WHOLE
from ctx_export.frontends.attention_backend import attention_backend, decoder_layers
from ctx_export.frontends.checkpoint import stated_kv_heads
from ctx_export.validate.older_attention import (
    cached_groups,
    has_rows,
    per_head,
    rotary_of_rows,
    state_rope,
)
from ctx_export.validate.quantised import CacheNumbers, install
from ctx_export.validate.rope_parameters import Scaling, Trained, rope_parameters
from ctx_export.validate.synthetic import Cache

Floats = NDArray[np.float32]

TORCH_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
PROBE_LIMIT = 64  # tokens of one probe


class Rotary(enum.Enum):
    """What gives the layers their cos and sin.

    EXACT: float64 over the table given (the package's), or transformers' own where none is.
    OWN_TABLE: float64 over transformers' own float32 table. UNMODIFIED: transformers as it is.
    """

    EXACT = "exact"
    OWN_TABLE = "own table"
    UNMODIFIED = "unmodified"


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceRope:
    """Rotation in Hugging Face's words: `parameters` are a config's `rope_parameters`.

    `long_table` says which of longrope's tables holds at every position; transformers would switch
    between them by the longest position of a call. `inv_freq` [F] radians per token is the table
    of `Rotary.EXACT`, None for transformers' own: the two agree to 2e-6, but one unit in the last
    place of a float32 frequency already turns position 131071 by 8e-3 rad.
    """

    parameters: Mapping[str, Any]
    original_context: int
    long_table: bool = False
    inv_freq: Floats | None = None


class TorchReference:
    """transformers' model of a checkpoint under given `rope_parameters`, on the CPU.

    `weights` is the precision that the weights are rounded to (the package's), `compute` the one
    that the model runs in. Raises UserError for a checkpoint that transformers cannot load.
    """

    def __init__(
        self,
        checkpoint: Path,
        rope: HuggingFaceRope,
        *,
        weights: str = "fp32",
        compute: str = "fp32",
        by_layer: bool = False,
    ) -> None:
        import torch

        self._dtype = getattr(torch, TORCH_TYPES[compute])
        config = load_config(checkpoint)
        if by_layer:
            from ctx_export.validate.layerwise import load_by_layer

            self._model = load_by_layer(checkpoint, config, weights, compute)
        else:
            self._model = load_model(checkpoint, config, weights, compute)
        self._owner = rotary_owner(self._model)
        self._layers = decoder_layers(self._model)[1]
        self._kv_heads = stated_kv_heads(checkpoint)
        own = own_rotary(type(self._owner.rotary_emb), config, rope)
        self._rotary = {
            Rotary.UNMODIFIED: own,
            Rotary.OWN_TABLE: _exact_rotary(own, None),
            Rotary.EXACT: _exact_rotary(own, rope.inv_freq),
        }

    @property
    def layers(self) -> int:
        return int(self._model.config.num_hidden_layers)

    @property
    def vocab(self) -> int:
        return int(self._model.config.vocab_size)

    @property
    def inv_freq(self) -> Floats:
        """transformers' table in radians per token, [F]."""
        table: Floats = self._rotary[Rotary.UNMODIFIED].inv_freq.numpy().copy()
        return table

    @property
    def multiplier(self) -> float:
        """transformers' factor on cos and sin."""
        return float(self._rotary[Rotary.UNMODIFIED].attention_scaling)

    def hold(self, numbers: Sequence[CacheNumbers] | None) -> None:
        """Read keys and values back as caches of these `numbers` per layer keep them, from now on;
        None: as they are."""
        install(self._model, self._layers, numbers)

    def watch(self, layer_done: Callable[[], None]) -> None:
        """Call `layer_done` after each of the model's `layers` in every forward."""
        for layer in self._layers:
            layer.register_forward_hook(lambda *_: layer_done())

    def logits(
        self,
        token_ids: ArrayLike,
        *,
        rows: Sequence[int] | None = None,
        rotary: Rotary = Rotary.EXACT,
    ) -> Floats:
        """Logits [B,R,V] float32 of `rows` (default all) of one full forward over [B,N] tokens.

        There is no cache: every token attends to all before it in one call.
        """
        return self._forward(token_ids, 0, None, rows, rotary)

    def probe(
        self,
        cache: Cache,
        token_ids: ArrayLike,
        *,
        rotary: Rotary = Rotary.EXACT,
    ) -> Floats:
        """Logits [1,N,V] float32 of up to 64 tokens that follow `cache`, in one call."""
        tokens = np.asarray(token_ids).shape[-1]
        if tokens > PROBE_LIMIT:
            raise UserError(f"a probe of {tokens} tokens: give at most {PROBE_LIMIT}")
        return self._forward(token_ids, cache.length, cache, None, rotary)

    def own_cache(self, token_ids: ArrayLike) -> Cache:
        """The keys (rotated) and values that the model itself computes for [B,N] tokens."""
        from transformers import DynamicCache

        past: Any = DynamicCache()
        self._forward(token_ids, 0, None, [0], Rotary.EXACT, past)
        parts: list[list[Floats]] = [[], []]
        for layer in past.layers:
            for part, held in zip(parts, (layer.keys, layer.values), strict=True):
                part.append(per_head(held, self._kv_heads).float().numpy())
        return Cache(keys=tuple(parts[0]), values=tuple(parts[1]))

    def _forward(
        self,
        token_ids: ArrayLike,
        start: int,
        cache: Cache | None,
        rows: Sequence[int] | None,
        rotary: Rotary,
        past: Any = None,
    ) -> Floats:
        import torch

        self._owner.rotary_emb = self._rotary[rotary]
        ids = torch.from_numpy(np.atleast_2d(np.asarray(token_ids, np.int64)))
        positions = torch.arange(start, start + ids.shape[1])[None].expand(ids.shape[0], -1)
        if cache is not None:
            past = self._past(cache)
        keep = 0 if rows is None else torch.tensor(list(rows), dtype=torch.int64)
        with torch.inference_mode():
            output = self._model(
                input_ids=ids,
                position_ids=positions,
                past_key_values=past,
                use_cache=past is not None,
                logits_to_keep=keep,
            )
        logits: Floats = output.logits.float().numpy()
        return logits

    def _past(self, cache: Cache) -> Any:
        """A DynamicCache that holds `cache`, in the model's type."""
        import torch
        from transformers import DynamicCache

        if len(cache.keys) != self.layers:
            raise UserError(
                f"the cache has {len(cache.keys)} layers, the reference {self.layers}: give the "
                "checkpoint that the package was made from"
            )
        past, groups = DynamicCache(), cached_groups(self._model.config, self._kv_heads)
        for layer, (key, value) in enumerate(zip(cache.keys, cache.values, strict=True)):
            keys, values = (
                torch.from_numpy(np.repeat(array, groups, axis=1)).to(self._dtype)
                for array in (key, value)
            )
            past.update(keys, values, layer)
        return past


def hugging_face_rope(
    scaling: Scaling, config: Any, inv_freq: Floats | None = None
) -> HuggingFaceRope:
    """`scaling` in transformers' words for the model of `config`; `inv_freq` as there."""
    own = main_rope(config)
    partial = own.get("partial_rotary_factor") or 1.0
    if own.get("rope_type") == "proportional":
        # There it is the share of the frequencies that turn, over the whole head.
        if scaling.method == "proportional":
            shared = {"partial_rotary_factor": partial, **scaling.parameters}
            scaling = replace(scaling, parameters=shared)
        partial = 1.0
    trained = Trained(
        theta=float(own["rope_theta"]),
        partial_rotary_factor=float(partial),
        head_dim=head_dimension(config),
    )
    return HuggingFaceRope(
        parameters=rope_parameters(scaling, trained),
        original_context=scaling.original_context,
        long_table=scaling.long_table,
        inv_freq=inv_freq,
    )


def main_rope(config: Any) -> dict[str, Any]:
    """rope_parameters of a config; of the layers that see every token where layers differ."""
    entries = dict(config.rope_parameters or {})
    return dict(entries[WHOLE]) if has_kinds(config) else entries


def has_kinds(config: Any) -> bool:
    """Whether kinds of layers have rope_parameters of their own."""
    entries = dict(config.rope_parameters or {})
    return any(isinstance(value, dict) for value in entries.values())


def with_rope(config: Any, parameters: Mapping[str, Any]) -> Any:
    """A copy of `config` with other rope_parameters; kinds of layers with a window keep theirs."""
    changed = copy.deepcopy(config)
    kept = dict(config.rope_parameters) if has_kinds(config) else None
    changed.rope_parameters = (
        dict(parameters) if kept is None else {**kept, WHOLE: dict(parameters)}
    )
    return changed


def head_dimension(config: Any) -> int:
    """head_dim of a config, which older families leave to be computed."""
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def load_config(checkpoint: Path) -> Any:
    """transformers' config of a checkpoint directory."""
    from transformers import AutoConfig

    with quiet():
        try:
            config = AutoConfig.from_pretrained(str(checkpoint))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"reference {checkpoint} cannot be read by transformers: {_first_line(error)}; "
                "give the checkpoint directory that the package was made from"
            ) from None
    if has_rows(config):
        state_rope(config)
    if not hasattr(config, "rope_parameters"):
        raise UserError(
            f"transformers' {type(config).__name__} takes no rotary settings: a model of this "
            "kind cannot be validated in this version"
        )
    if getattr(config, "head_dim", 0) is None:  # its frequency tables do not compute it
        config.head_dim = head_dimension(config)
    return config


def load_model(checkpoint: Path, config: Any, weights: str, compute: str) -> Any:
    """The whole model in memory, its weights rounded to `weights`."""
    import torch
    from transformers import AutoModelForCausalLM

    plain = without_scaling(config)
    dtype = getattr(torch, TORCH_TYPES[compute])
    with quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(checkpoint),
                config=plain,
                dtype=dtype,
                attn_implementation=attention_backend(config),
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(
                f"reference {checkpoint} cannot be loaded by transformers: {_first_line(error)}"
            ) from None
    if weights != compute:
        rounded = getattr(torch, TORCH_TYPES[weights])
        for parameter in model.parameters():
            parameter.data = parameter.data.to(rounded).to(dtype)
    return model.eval()


def without_scaling(config: Any) -> Any:
    """A copy of `config` with plain rotation: the rotary module is built separately."""
    own = main_rope(config)
    plain = {"rope_type": "default", "rope_theta": own.get("rope_theta", 1e4)}
    partial = own.get("partial_rotary_factor")
    if partial is not None and own.get("rope_type") != "proportional":
        plain["partial_rotary_factor"] = partial
    return with_rope(config, plain)


def rotary_owner(model: Any) -> Any:
    """The module whose `rotary_emb` gives every layer its cos and sin."""
    owners = [m for m in model.modules() if _is_rotary(getattr(m, "rotary_emb", None))]
    if not owners and has_rows(getattr(model, "config", None)):
        return rotary_of_rows(model, decoder_layers(model)[1])
    if len(owners) != 1:
        raise UserError(
            f"{type(model).__name__} has {len(owners)} rotary modules: only models with one for "
            "all layers can be validated in this version"
        )
    return owners[0]


def _is_rotary(module: Any) -> bool:
    """Whether a module holds frequencies, of all layers or of kinds of them."""
    held = dict(module.named_buffers()) if module is not None else {}
    return any(name.endswith("inv_freq") for name in held)


def own_rotary(kind: type, config: Any, rope: HuggingFaceRope) -> Any:
    """transformers' unmodified rotary module under `rope`, always with the same table."""
    scaled = with_rope(config, rope.parameters)
    # Phi3's config keeps L beside rope_parameters and gives that one priority.
    if hasattr(scaled, "original_max_position_embeddings"):
        scaled.original_max_position_embeddings = rope.original_context
    with quiet():
        rotary = kind(scaled)
        if rope.parameters.get("rope_type") == "longrope":
            _hold_table(rotary, scaled, rope)
    return rotary


def _hold_table(rotary: Any, config: Any, rope: HuggingFaceRope) -> None:
    """Make both tables that longrope switches between the one of `rope.long_table`."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    length = rope.original_context + rope.long_table
    table, rotary.attention_scaling = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=length)
    for name in ("inv_freq", "original_inv_freq"):
        getattr(rotary, name).copy_(table)
    rotary.long_inv_freq = table.clone()


def _exact_rotary(own: Any, table: Floats | None) -> Any:
    """`own` with its forward replaced: angles, cos and sin in float64, cast at the end."""
    import torch

    exact = copy.deepcopy(own)
    inv_freq = exact.inv_freq if table is None else torch.from_numpy(table.copy())
    if inv_freq.shape != exact.inv_freq.shape:
        raise UserError(
            f"the package has {len(inv_freq)} frequencies, the reference {len(exact.inv_freq)}: "
            "give the checkpoint that the package was made from"
        )
    inv_freq, multiplier = inv_freq.double(), float(exact.attention_scaling)
    spread = _layout(own)

    def forward(x: Any, position_ids: Any) -> tuple[Any, Any]:
        angle = spread(position_ids[..., None].double() * inv_freq)
        cos, sin = angle.cos() * multiplier, angle.sin() * multiplier
        return cos.to(x.dtype), sin.to(x.dtype)

    exact.forward = forward
    return exact


def _layout(own: Any) -> Callable[[Any], Any]:
    """How `own` spreads angles [..., F] over the 2F rotated dims: halves, or pairs side by
    side, or not where one angle serves both dims of a pair.

    Found by asking it for the cos and sin of position 1; raises UserError where neither gives
    those, because then the module does something else than turn by position × frequency.
    """
    import torch

    position = torch.ones(1, 1, dtype=torch.int64)
    try:
        given = torch.cat(own(torch.zeros(1), position))
    except KeyError as error:
        kind = own.config.rope_parameters["rope_type"]
        raise UserError(
            f"transformers' {type(own).__name__} needs {error} for rope_parameters of type "
            f"{kind}: a model of this kind cannot be validated with this method in this version"
        ) from None
    angle = own.inv_freq[None, None].double()
    for spread in (
        lambda a: torch.cat((a, a), dim=-1),
        lambda a: a.repeat_interleave(2, dim=-1),
        lambda a: a,
    ):
        expected = torch.cat((spread(angle).cos(), spread(angle).sin())) * own.attention_scaling
        if given.shape == expected.shape and torch.allclose(given.double(), expected, atol=1e-5):
            return spread
    raise UserError(
        f"{type(own).__name__} does not rotate by position × frequency: a model of this kind "
        "cannot be validated in this version"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers while it loads."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.ERROR)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
