"""The bundled demo checkpoint: a small Llama-type decoder trained on a context of 256 tokens."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """Directory of the checkpoint, as a Hugging Face checkpoint directory."""
    return Path(__file__).resolve().parent


def heldout_text() -> str:
    """Text that was not in the training data (Python standard library, PSF licence)."""
    return (path() / "heldout.txt").read_text(encoding="utf-8")
