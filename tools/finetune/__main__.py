"""The short fine-tuning that linear (Position Interpolation), ntk and yarn want.

    python -m tools.finetune demo --method linear --target 1k --text demo-train \\
        --schedule cosine --pass-keys 0.25 -o OUT

A few hundred steps at the longer context, of all weights or of low-rank matrices (--lora), in
plain PyTorch. OUT is a checkpoint that states its rope_parameters: `ctx-export OUT` takes it as it
is. --text names UTF-8 files, or demo-train: the sources of Python's standard library without those
that the demo's heldout.txt measures with. A run that was interrupted goes on when the command is
repeated; its state is in OUT.partial.

`python -m tools.eval.demo perplexity` runs it for linear, ntk and yarn and measures the demo
before and after.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ctx_export.cli.common import EXIT_INTERRUPTED, Size, command
from ctx_export.core.recipe import build_recipe
from ctx_export.scaling import names
from tools.finetune.settings import (
    DEVICES,
    LARGE_RATE,
    SCHEDULES,
    SMALL_RATE,
    LoraSettings,
    TrainingSettings,
)

_COUNT = click.IntRange(min=1)


@command("python -m tools.finetune")
@click.argument("model")
@click.option(
    "--method",
    metavar="NAME",
    help=f"Scaling method: {', '.join(names())}. [default: the checkpoint's own]",
)
@click.option("--target", type=Size(), help="Longer context, such as 1k. [default: as it is]")
@click.option("--factor", type=float, help="Scaling factor. [default: target / original]")
@click.option("--original-context", type=Size(), help="Tokens the model was trained on.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="One value of the recipe, such as scaling.beta_fast=16; may be repeated.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    metavar="FILE",
    help="UTF-8 text to train on, or demo-train; may be repeated.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--steps", type=_COUNT, default=200, show_default=True)
@click.option("--batch", type=_COUNT, default=4, show_default=True, help="Windows at once.")
@click.option("--accumulate", type=_COUNT, default=1, show_default=True, help="Batches of a step.")
@click.option("--length", type=Size(), help="Tokens of a window. [default: the target]")
@click.option(
    "--rate",
    type=float,
    help=f"Learning rate. [default: {LARGE_RATE:g}; below 100M parameters {SMALL_RATE:g}]",
)
@click.option("--warmup", type=click.IntRange(min=0), help="Steps. [default: 20, or a tenth]")
@click.option("--schedule", type=click.Choice(SCHEDULES), default=SCHEDULES[0], show_default=True)
@click.option("--clip", type=float, default=1.0, show_default=True, help="Of the gradient's norm.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--lora", type=_COUNT, metavar="RANK", help="Train low-rank matrices only.")
@click.option("--lora-alpha", type=float, help="[default: twice the rank]")
@click.option("--lora-mlp", is_flag=True, help="Also beside the MLP's layers.")
@click.option(
    "--pass-keys",
    type=float,
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of the windows that ask for a pass key told in them.",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, more time.")
@click.option("--device", type=click.Choice(DEVICES), default=DEVICES[0], show_default=True)
@click.option("--threads", type=_COUNT, help="Of PyTorch on a CPU. [default: PyTorch's]")
@click.option("--save-every", type=_COUNT, default=50, show_default=True, metavar="STEPS")
@click.option("--restart", is_flag=True, help="Forget an interrupted run.")
@click.option("--force", is_flag=True, help="Replace an OUT that exists.")
def main(texts: tuple[str, ...], settings: tuple[str, ...], output: Path, **options: Any) -> None:
    """Fine-tune MODEL, a checkpoint directory or demo, at a longer context."""
    from tools.finetune.extension import check_settings
    from tools.finetune.run import Interrupted, Request, run

    check_settings(settings)
    scaling = ("model", "method", "target", "factor", "original_context", "force")
    given = {name: options.pop(name) for name in scaling}
    recipe = build_recipe({**given, "output": output}, settings=settings)
    own = ("length", "rate", "device", "save_every", "restart")
    request = Request(
        recipe=recipe,
        texts=texts,
        output=output,
        **{name: options.pop(name) for name in own},
        training=_training(options),
    )
    try:
        made = run(request, lambda line: click.echo(line, err=True), _reporter)
    except Interrupted as stopped:
        click.echo(f"{stopped}; repeat the command to go on", err=True)
        sys.exit(EXIT_INTERRUPTED)
    click.echo(f"checkpoint {made}")


def _training(options: dict[str, Any]) -> Any:
    """What makes the settings once length and rate are known."""
    import torch

    threads, rank = options.pop("threads"), options.pop("lora")
    alpha, mlp, warmup = (options.pop(name) for name in ("lora_alpha", "lora_mlp", "warmup"))
    if threads is not None:
        torch.set_num_threads(threads)
    if rank is None and (alpha is not None or mlp):
        raise click.UsageError("--lora-alpha and --lora-mlp belong to --lora: give its rank too")
    lora = None
    if rank is not None:
        lora = LoraSettings(rank=rank, alpha=2.0 * rank if alpha is None else alpha, mlp=mlp)
    if warmup is None:
        warmup = min(20, options["steps"] // 10)

    def make(length: int, rate: float) -> TrainingSettings:
        return TrainingSettings(length=length, rate=rate, warmup=warmup, lora=lora, **options)

    return make


def _reporter(steps: int, done: int) -> Any:
    from tools.finetune.reporting import Reporter

    return Reporter(sys.stderr, steps, done).step


if __name__ == "__main__":
    main()
