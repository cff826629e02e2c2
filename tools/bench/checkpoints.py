"""Llama-type checkpoints of a given shape for benchmarks: random weights, or sparse files."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctx_export import demo

_BYTES = 2  # bfloat16
_SHARD_BYTES = 5 * 10**9
# Keeps sign and mantissa of random bits and makes the exponent 2^-7: finite, small numbers.
_KEEP, _EXPONENT = np.uint16(0x807F), np.uint16(0x3C00)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama-type decoder in bfloat16. `sparse`: the weights are holes in the files, zeros."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    theta: float
    sparse: bool

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every weight in the order of the files."""
        head_dim = self.hidden // self.heads
        queries, keys = self.heads * head_dim, self.kv_heads * head_dim
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            yield at + "input_layernorm.weight", (self.hidden,)
            yield at + "self_attn.q_proj.weight", (queries, self.hidden)
            yield at + "self_attn.k_proj.weight", (keys, self.hidden)
            yield at + "self_attn.v_proj.weight", (keys, self.hidden)
            yield at + "self_attn.o_proj.weight", (self.hidden, queries)
            yield at + "post_attention_layernorm.weight", (self.hidden,)
            yield at + "mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield at + "mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield at + "mlp.down_proj.weight", (self.hidden, self.intermediate)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)

    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in self.tensors())

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
            "rope_theta": self.theta,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }


SMALL = Shape(
    name="0.44B",
    hidden=1024,
    intermediate=4096,
    layers=24,
    heads=16,
    kv_heads=8,
    vocab=32000,
    context=2048,
    theta=10000.0,
    sparse=False,
)
LARGE = Shape(
    name="8B",
    hidden=4096,
    intermediate=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    vocab=128256,
    context=8192,
    theta=500000.0,
    sparse=True,
)


def write_checkpoint(shape: Shape, directory: Path) -> Path:
    """Write the checkpoint to `directory` unless a finished one is there; returns `directory`."""
    finished = directory / "config.json"
    if finished.exists() and json.loads(finished.read_text()) == shape.config():
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    shards = _split(shape)
    weight_map = {}
    for index, shard in enumerate(shards, start=1):
        name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / name, shard, sparse=shape.sparse)
        weight_map.update({tensor: name for tensor, _ in shard})
    total = shape.parameters() * _BYTES
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index_text)
    # A real vocabulary of its own size; nothing is generated, readers only want the file.
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(demo.path() / name, directory / name)
    finished.write_text(json.dumps(shape.config()))
    return directory


def _split(shape: Shape) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, dimensions in shape.tensors():
        count = int(np.prod(dimensions)) * _BYTES
        if shards[-1] and size + count > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, dimensions))
        size += count
    return shards


def _write_shard(path: Path, tensors: list[tuple[str, tuple[int, ...]]], *, sparse: bool) -> None:
    """One safetensors file: the header's length, the header, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        begin, end = end, end + int(np.prod(shape)) * _BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if sparse:
            file.truncate(8 + len(text) + end)
            return
        for _, shape in tensors:
            bits = np.frombuffer(random.bytes(int(np.prod(shape)) * _BYTES), np.uint16)
            file.write(((bits & _KEEP) | _EXPONENT).tobytes())
