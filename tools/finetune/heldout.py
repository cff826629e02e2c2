"""Perplexity and pass keys of the demo's kin on text held out from training, in PyTorch.

    python -m tools.finetune.heldout CHECKPOINT... [--lengths 256,1k] [--windows 100]
                                     [--scored 128] [--keys 4]

transformers' own model as the checkpoint's config says, float32; the perplexity of the last 128
tokens of each window, the same tokens at every length, with its standard error over windows; a
pass key is found if every token of it is the most likely one. CHECKPOINT is demo or a directory,
or METHOD:LENGTH for the demo with a scaling method that it was not trained for, such as linear:1k.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from ctx_export.cli.common import command
from ctx_export.core.sizes import format_size, parse_size
from tools.bench.perplexity import Ints, Perplexity, bos_token, heldout_tokens, losses
from tools.eval.pass_keys import Question, questions

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ANSWER_ROOM = 8  # tokens of a length that the answer may take


@command("python -m tools.finetune.heldout")
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--lengths", default="256,1k", show_default=True)
@click.option("--windows", type=click.IntRange(min=2), default=100, show_default=True)
@click.option("--scored", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--keys", type=click.IntRange(min=0), default=4, show_default=True)
@click.option("--threads", type=click.IntRange(min=1))
def main(
    checkpoints: tuple[str, ...],
    lengths: str,
    windows: int,
    scored: int,
    keys: int,
    threads: int | None,
) -> None:
    """Print perplexity and pass keys found of checkpoints with the demo's tokenizer."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    sizes = [parse_size(part, what="lengths") for part in lengths.split(",")]
    ends = window_ends(windows, max(sizes))
    click.echo(f"{windows} windows, the last {scored} tokens of each; {keys} keys per depth")
    click.echo(f"{'checkpoint':<24} {'tokens':>6}  {'perplexity':>14}  keys")
    for name in checkpoints:
        model = load(name)
        for length in sizes:
            found = perplexity(model, length, ends, scored)
            shown = f"{found.value:.2f} ± {found.error:.2f}"
            share = f"{keys_found(model, length, keys):.2f}" if keys else "-"
            click.echo(f"{name:<24} {format_size(length):>6}  {shown:>14}  {share}")


def load(name: str) -> Any:
    """transformers' own model of `demo`, a directory or METHOD:LENGTH, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from ctx_export.core.recipe import Recipe
    from ctx_export.frontends.checkpoint import locate
    from ctx_export.validate.torch_reference import load_config, quiet
    from tools.finetune.extension import extend

    method, _, length = name.partition(":")
    if length and not Path(name).exists():
        recipe = Recipe(method=method, target=parse_size(length, what="checkpoint"))
        name, config = recipe.model, extend(recipe).config
    else:
        config = load_config(locate(name))
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            locate(name), config=config, dtype=torch.float32
        )
    return model.eval()


def perplexity(model: Any, length: int, ends: Ints, scored: int) -> Perplexity:
    """Of the last `scored` tokens of windows of BOS and the `length` - 1 tokens before `ends`."""
    text = heldout_tokens()[1]
    means = []
    for end in ends:
        window = np.concatenate([[bos_token()], text[end - length + 1 : end]])
        logits = _logits(model, window[:-1], scored)
        means.append(losses(logits, window[-scored:]).mean())
    return Perplexity.of(np.array(means))


def window_ends(count: int, longest: int) -> Ints:
    """Where `count` windows end, spread over the held-out text."""
    ends: Ints = np.linspace(longest, len(heldout_tokens()[1]), count).astype(np.int64)
    return ends


def keys_found(model: Any, length: int, keys: int) -> float:
    """Share of the pass keys that are found at every depth."""
    asked = questions(length - _ANSWER_ROOM, DEPTHS, keys)
    return sum(_is_found(model, question) for question in asked) / len(asked)


def _is_found(model: Any, question: Question) -> bool:
    """Greedy decoding gives the answer iff each token of it is first among its predecessors'."""
    tokens = np.concatenate([question.prompt, question.answer[:-1]])
    logits = _logits(model, tokens, len(question.answer))
    return bool((logits.argmax(axis=1) == question.answer).all())


def _logits(model: Any, tokens: Ints, last: int) -> Any:
    """Logits [last, V] of the last tokens of one forward pass."""
    import torch

    with torch.inference_mode():
        output = model(
            input_ids=torch.from_numpy(tokens)[None], use_cache=False, logits_to_keep=last
        )
    return output.logits[0].float().numpy()


if __name__ == "__main__":
    main()
