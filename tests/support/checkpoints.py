"""Small random checkpoints and damaged copies of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ctx_export import demo


def copy_demo(directory: Path, **config: Any) -> Path:
    """A copy of the demo checkpoint with config.json entries replaced; None removes a key."""
    target = directory / "checkpoint"
    target.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copyfile(demo.path() / name, target / name)
    edit_config(target, **config)
    return target


def edit_config(checkpoint: Path, **entries: Any) -> None:
    """Replace entries of config.json; None removes a key."""
    path = checkpoint / "config.json"
    config = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def split_shards(checkpoint: Path) -> list[Path]:
    """Replace the checkpoint's single file by two shards and an index."""
    import ml_dtypes  # noqa: F401, teaches numpy bfloat16
    from safetensors.numpy import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(tensors)
    shards, weight_map = [], {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = checkpoint / f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, shard)
        weight_map |= dict.fromkeys(part, shard.name)
        shards.append(shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    return shards
