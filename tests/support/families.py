"""Tiny random checkpoints of five decoder families and their oracle: transformers' own models."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VOCAB = 131
LAYERS, HEADS, KV_HEADS = 3, 6, 2
ORIGINAL_CONTEXT = 64
THETA = 10000.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """A checkpoint to make: its family, head dimension and what else its config.json says."""

    name: str
    head_dim: int
    rotary_dim: int | None = None  # None: the whole head
    config: dict[str, Any] = field(default_factory=dict)
    unsaid: tuple[str, ...] = ()  # keys that save_pretrained writes and older checkpoints lack

    def __str__(self) -> str:
        return f"{self.name}-{self.head_dim}"

    @property
    def rotated(self) -> int:
        return self.rotary_dim or self.head_dim

    def rope(self, **entries: Any) -> dict[str, Any]:
        """rope_parameters with what the checkpoint was trained with where `entries` are silent."""
        trained = {"rope_type": "default", "rope_theta": THETA}
        if self.rotary_dim is not None:
            trained["partial_rotary_factor"] = self.rotary_dim / self.head_dim
        return {**trained, **entries}


# Half of them tie their embeddings; llama and qwen3 have biases where their configs turn them on,
# qwen2 always on q, k and v; qwen2 and phi3 configs have no head_dim: hidden size / heads. The
# windows lie between the trained context and the lengths that are tested, in all layers or some.
FAMILIES = {
    str(family): family
    for family in (
        Family(
            name="llama",
            head_dim=80,
            config={
                "hidden_size": 96,
                "head_dim": 80,
                "tie_word_embeddings": True,
                "attention_bias": True,
                "mlp_bias": True,
            },
        ),
        Family(name="llama", head_dim=128, config={"hidden_size": 96, "head_dim": 128}),
        Family(
            name="mistral",
            head_dim=80,
            config={"hidden_size": 96, "head_dim": 80, "sliding_window": 100},
        ),
        Family(
            name="mistral",
            head_dim=128,
            config={
                "hidden_size": 96,
                "head_dim": 128,
                "sliding_window": None,
                "tie_word_embeddings": True,
            },
        ),
        Family(name="qwen2", head_dim=80, config={"hidden_size": 480}),
        Family(
            name="qwen2",
            head_dim=128,
            config={
                "hidden_size": 768,
                "tie_word_embeddings": True,
                "use_sliding_window": True,
                "sliding_window": 100,
                "max_window_layers": 1,
            },
            unsaid=("layer_types",),
        ),
        Family(
            name="qwen3",
            head_dim=80,
            config={
                "hidden_size": 96,
                "head_dim": 80,
                "tie_word_embeddings": True,
                "attention_bias": True,
                "use_sliding_window": True,
                "sliding_window": 100,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        ),
        Family(name="qwen3", head_dim=128, config={"hidden_size": 96, "head_dim": 128}),
        Family(
            name="phi3",
            head_dim=80,
            rotary_dim=32,
            config={"hidden_size": 480, "tie_word_embeddings": True},
        ),
        Family(
            name="phi3",
            head_dim=128,
            rotary_dim=96,
            config={"hidden_size": 768, "sliding_window": 100},
        ),
    )
}


def save_checkpoint(family: Family, directory: Path, dtype: str = "float32") -> Path:
    """A checkpoint of `family` with random weights stored in `dtype`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    entries = {
        "vocab_size": VOCAB,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": 64,
        "max_position_embeddings": ORIGINAL_CONTEXT,
        "tie_word_embeddings": False,
        "rope_parameters": family.rope(),
        "pad_token_id": 0,
        "eos_token_id": 2,
        **family.config,
    }
    if family.name == "phi3":
        # Its config class would write 4096 there, and gives it priority over rope_parameters.
        entries["original_max_position_embeddings"] = ORIGINAL_CONTEXT
    config = AutoConfig.for_model(family.name, **entries)
    model = AutoModelForCausalLM.from_config(config)
    randomise(model)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    edit_config(directory, **dict.fromkeys(family.unsaid))
    return directory


def randomise(model: Any) -> None:
    """Weights that make attention depend on positions: logits with a spread of a few units.

    transformers' own initialization leaves biases 0, norms 1 and attention nearly uniform.
    """
    import torch

    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            spread = 0.2 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.normal_(0.0, spread, generator=generator)
            if "norm" in name:
                parameter.add_(1.0)


def copy_with_config(checkpoint: Path, directory: Path, **entries: Any) -> Path:
    """A copy of `checkpoint` with entries of config.json replaced; None removes a key."""
    shutil.copytree(checkpoint, directory)
    edit_config(directory, **entries)
    return directory


def edit_config(checkpoint: Path, **entries: Any) -> None:
    """Replace entries of config.json; None removes a key, other nulls stay."""
    path = checkpoint / "config.json"
    config = {**json.loads(path.read_text()), **entries}
    removed = {key for key, value in entries.items() if value is None}
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in removed}))


def load_config(checkpoint: Path, rope: dict[str, Any] | None = None, **entries: Any) -> Any:
    """transformers' config of a checkpoint, with `rope` as its rope_parameters if given."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    if rope is not None:
        config.rope_parameters = dict(rope)
    for name, value in entries.items():
        setattr(config, name, value)
    return config


def load_model(checkpoint: Path, config: Any, dtype: str = "float32") -> Any:
    """transformers' own, unmodified model."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, config=config, dtype=getattr(torch, dtype)
    )
    return model.eval()


def rounded(model: Any, dtype: str) -> Any:
    """`model` in float32 with weights that `dtype` can hold."""
    import torch

    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).to(torch.float32)
    return model


def forward(model: Any, ids: np.ndarray) -> np.ndarray:
    """Logits [N,V] float32 of one forward over [N] tokens at batch 1, without a cache."""
    import torch

    with torch.inference_mode():
        output = model(input_ids=torch.from_numpy(ids[None]), use_cache=False)
    logits: np.ndarray = output.logits[0].float().numpy()
    return logits
