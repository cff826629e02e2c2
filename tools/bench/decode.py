"""Decode speed of a package beside transformers on the same checkpoint, in one run.

Both sides run in float32 on the same threads. Their caches are filled with the same synthetic keys
and values up to each context length, then one token at a time is decoded; rounds alternate between
the two sides. Usage:

    python -m tools.bench.decode PACKAGE CHECKPOINT [--contexts 1024,32768] [--threads 2]

PACKAGE is a package of CHECKPOINT in fp32, or in bf16, which a CPU runs as a float32 twin.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctx_export.core.manifest import Manifest
from ctx_export.runtime.session import Session, open_session
from tools.bench.measure import machine, spread

PACKAGES = ("onnxruntime", "torch", "transformers", "numpy")
Caches = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Milliseconds per token of one side at one context length."""

    side: str
    context: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    tokens: int


def main() -> None:
    options = _options()
    manifest = Manifest.load(options.package)
    transformers = _Transformers(options.checkpoint, options.threads)
    rows: list[Row] = []
    with open_session(options.package, threads=options.threads) as session:
        for context in options.contexts:
            rows += _compare(session, transformers, manifest, context, options)
    report = {"machine": machine(options.threads, PACKAGES), "rows": [asdict(row) for row in rows]}
    _print(report, rows)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _compare(
    session: Session,
    transformers: _Transformers,
    manifest: Manifest,
    context: int,
    options: argparse.Namespace,
) -> list[Row]:
    """Alternate rounds of both sides at `context` tokens."""
    caches = synthetic_caches(manifest, context)
    session.load_cache([key for key, _ in caches], [value for _, value in caches], context)
    transformers.load(caches)
    sides: dict[str, Callable[[int], Any]] = {
        "ctx-export": lambda token: session.feed([[token]], logits="last"),
        "transformers": transformers.step,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    tokens = np.random.default_rng(1).integers(3, manifest.model["vocab"], options.tokens)
    for repetition in range(options.rounds + 1):
        for name, step in sides.items():
            for token in tokens:
                started = time.perf_counter()
                step(int(token))
                if repetition:  # the first round warms up
                    times[name].append((time.perf_counter() - started) * 1e3)
    return [_row(name, context, measured) for name, measured in times.items()]


class _Transformers:
    """The checkpoint in transformers with a cache of its own."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        self._model.eval()
        self._cache: Any = None

    def load(self, caches: Caches) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache()
        for layer, (key, value) in enumerate(caches):
            self._cache.update(self._torch.from_numpy(key), self._torch.from_numpy(value), layer)

    def step(self, token: int) -> Any:
        torch = self._torch
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([[token]]), past_key_values=self._cache, use_cache=True
            )
        return output.logits[0, -1].numpy()


def synthetic_caches(manifest: Manifest, context: int) -> Caches:
    """The same keys and values for both sides, one [1,Hkv,P,D] pair per layer."""
    model = manifest.model
    random = np.random.default_rng(0)
    shape = (1, int(model["kv_heads"]), context, int(model["head_dim"]))
    return [
        (
            random.standard_normal(shape, dtype=np.float32),
            random.standard_normal(shape, dtype=np.float32),
        )
        for _ in range(int(model["layers"]))
    ]


def _row(side: str, context: int, times: list[float]) -> Row:
    median, low, high = spread(times)
    return Row(
        side=side,
        context=context,
        median_ms=median,
        p10_ms=low,
        p90_ms=high,
        tokens=len(times),
    )


def _print(report: dict[str, Any], rows: list[Row]) -> None:
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    print(f"{'context':>8} {'side':<13} {'ms/token':>9} {'p10':>8} {'p90':>8} {'tokens/s':>9}")
    for row in rows:
        print(
            f"{row.context:>8} {row.side:<13} {row.median_ms:>9.3f} {row.p10_ms:>8.3f} "
            f"{row.p90_ms:>8.3f} {1e3 / row.median_ms:>9.1f}"
        )
    for context in dict.fromkeys(row.context for row in rows):
        ours, theirs = (row.median_ms for row in rows if row.context == context)
        print(f"{context:>8} ctx-export takes {ours / theirs:.2f} of transformers' time")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("package", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--contexts",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[1024, 32768],
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a round")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
