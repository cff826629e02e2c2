"""ONNX files that other tools wrote (tests/fixtures/onnx), each with the model that it holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "onnx"
# Their writers left out what the checkpoint's config.json says.
UNFAITHFUL = ("gemma2/optimum-past", "mistral/genai-fp32-cpu")


@dataclass(frozen=True, kw_only=True)
class PeerFile:
    """A family's file: `writer` is optimum-past, genai-fp32-cpu and so on."""

    family: str
    writer: str

    def __str__(self) -> str:
        return f"{self.family}/{self.writer}"

    @property
    def path(self) -> Path:
        return FOLDER / self.family / self.writer / "model.onnx"

    @property
    def checkpoint(self) -> Path:
        return FOLDER / self.family / "checkpoint"

    @property
    def precision(self) -> str:
        """fp32, fp16 or int4."""
        tool, kind = self.writer.split("-", 1)
        return kind.split("-")[0] if tool == "genai" else "fp32"

    def copied(self, place: Path) -> Path:
        """A copy to export, so that nothing can change the fixture."""
        shutil.copytree(self.path.parent, place)
        return place / self.path.name

    def held_checkpoint(self, place: Path) -> Path:
        """The checkpoint of the weights that the file holds: its own, or one written to `place`
        with what 4-bit weights stand for."""
        if self.precision != "int4":
            return self.checkpoint
        return dequantised_checkpoint(self, place)


def peer_files() -> dict[str, PeerFile]:
    found = (
        PeerFile(family=path.parents[1].name, writer=path.parent.name)
        for path in sorted(FOLDER.glob("*/*/model.onnx"))
    )
    return {str(file): file for file in found}


def dequantised_checkpoint(file: PeerFile, place: Path) -> Path:
    """A copy of the checkpoint whose matrices are those of the file's MatMulNBits nodes."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(file.checkpoint, place)
    path = place / "model.safetensors"
    tensors = load_file(path)
    replaced = dict(dequantised(file.path, tensors))
    assert replaced.keys() <= tensors.keys() | {"lm_head.weight"}
    if "lm_head.weight" in replaced and "lm_head.weight" not in tensors:
        replaced["model.embed_tokens.weight"] = replaced.pop("lm_head.weight")  # tied
    save_file(tensors | replaced, path, {"format": "pt"})
    return place


def dequantised(path: Path, tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's names and float32 matrices [N,K] of every MatMulNBits of a file."""
    model = onnx.load(path)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        matrix = unpacked(node, [held[name] for name in node.input[1:]])
        name = node.input[1].removesuffix(".MatMul.weight_Q4")
        if name.endswith(".attn.qkv_proj"):
            stem = name.removesuffix(".attn.qkv_proj") + ".self_attn."
            names = [f"{stem}{part}_proj.weight" for part in "qkv"]
            cuts = np.cumsum([len(tensors[part]) for part in names])[:-1]
            yield from zip(names, np.split(matrix, cuts), strict=True)
        else:
            yield name.replace(".attn.", ".self_attn.") + ".weight", matrix


def unpacked(node: onnx.NodeProto, inputs: list[np.ndarray]) -> np.ndarray:
    """What a MatMulNBits node multiplies with, [N,K] float32, after onnxruntime's description.

    Its weights are [N, blocks, block bytes] with two numbers of 4 bits in a byte, the lower half
    first; each block of K has a scale and a zero point, 8 where none are given.
    """
    attributes = {entry.name: entry.i for entry in node.attribute}
    rows, columns, size = attributes["N"], attributes["K"], attributes["block_size"]
    assert attributes["bits"] == 4 and len(inputs) == 2
    assert attributes["accuracy_level"] == 1, "it multiplies with rounded activations"
    packed, scales = inputs
    blocks = -(-columns // size)
    packed = packed.reshape(rows, blocks, size // 2)
    numbers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, blocks, size)
    weights = (numbers.astype(np.float32) - 8) * scales.reshape(rows, blocks, 1)
    return np.ascontiguousarray(weights.reshape(rows, blocks * size)[:, :columns])
