"""A fine-tuning from its recipe to the checkpoint that it leaves."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError
from ctx_export.core.recipe import Recipe
from tools.finetune.demo_text import NAME, demo_texts
from tools.finetune.extension import Extension, extend
from tools.finetune.pass_keys import PassKeys
from tools.finetune.settings import TrainingSettings, default_rate
from tools.finetune.text import Batches, Windows, load_encoder, read_texts, tokenise

SAVE_EVERY = 50  # steps between saved states


class Interrupted(Exception):
    """The run was stopped after a step; its state is saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to do: `training` makes the settings once length and rate are known."""

    recipe: Recipe
    texts: tuple[str, ...]  # files, or demo-train
    output: Path
    length: int | None
    rate: float | None
    training: Callable[[int, float], TrainingSettings]
    device: str = "auto"
    save_every: int = SAVE_EVERY
    restart: bool = False


def run(request: Request, say: Callable[[str], None], on_step: Callable[[int, int], Any]) -> Path:
    """Fine-tune and return the new checkpoint's directory.

    `say` takes lines, `on_step(steps, done)` gives what takes each `Step`. Raises UserError for
    what cannot work and Interrupted where the user stopped it.
    """
    from ctx_export.build.package import check_output, staged
    from tools.finetune.memory import check_memory
    from tools.finetune.model import choose_device, load, save
    from tools.finetune.training import Training
    from tools.finetune.unfinished import Unfinished

    check_output(request.output, force=request.recipe.force)
    extension = extend(request.recipe)
    settings = _settings(request, extension)
    device = choose_device(request.device)
    check_memory(extension, settings, device)
    batches, digest = _batches(request, extension, settings)
    unfinished = Unfinished(
        request.output, _record(request, extension, settings, digest), restart=request.restart
    )
    training = Training(load(extension, settings, device), settings, device)
    unfinished.resume(training)
    say(_description(extension, settings, training.trained, device))
    if training.done:
        say(f"going on after step {training.done} of {unfinished.folder}")
    report = on_step(settings.steps, training.done)
    with _stop_asked() as stop:
        while training.done < settings.steps:
            step = training.step(batches.of_step(training.done))
            unfinished.add(step)
            report(step)
            if stop.is_set() or training.done % request.save_every == 0:
                unfinished.save(training)
            if stop.is_set() and training.done < settings.steps:
                raise Interrupted(f"stopped after step {training.done}: {unfinished.folder}")
    with staged(request.output, force=request.recipe.force) as stage:
        save(training.model, extension, stage)
        unfinished.finish(stage)
    unfinished.remove()
    return request.output


def _settings(request: Request, extension: Extension) -> TrainingSettings:
    from ctx_export.validate.memory import parameters

    length = request.length or extension.target
    if length > extension.target:
        raise UserError(
            f"length {length} is above the target {extension.target}: give --length "
            f"{extension.target} or less, or a longer --target"
        )
    rate = default_rate(parameters(extension.checkpoint)) if request.rate is None else request.rate
    return request.training(length, rate)


def _batches(
    request: Request, extension: Extension, settings: TrainingSettings
) -> tuple[Batches, str]:
    """What the steps train on, and the text's digest."""
    spec, directory = extension.checkpoint.spec, extension.checkpoint.directory
    encode = load_encoder(directory)
    tokens = tokenise(encode, _texts(request.texts), spec.vocab)
    windows = Windows(tokens, settings.length, spec.bos_token_id, settings.seed)
    asked = None
    if settings.questions:
        asked = PassKeys(encode, settings.length, spec.bos_token_id, settings.seed)
    elif settings.pass_keys:
        raise UserError(
            f"pass-keys is {settings.pass_keys:g} and a step has {settings.windows} windows, "
            f"so none would be a question: give at least {1 / settings.windows:g}, or a larger "
            "--batch"
        )
    made = Batches(windows, settings.batch, settings.accumulate, asked, settings.questions)
    return made, windows.digest()


def _texts(names: Sequence[str]) -> list[str]:
    """The texts of --text, in its order."""
    texts = []
    for name in names:
        texts += demo_texts() if name == NAME else read_texts([Path(name)])
    return texts


def _record(
    request: Request, extension: Extension, settings: TrainingSettings, digest: str
) -> dict[str, Any]:
    """What the weights at the end depend on."""
    config = (extension.checkpoint.directory / "config.json").read_bytes()
    return {
        "model": request.recipe.model,
        "model_config": hashlib.sha256(config).hexdigest()[:16],
        "model_weights": _weights(extension.checkpoint.directory),
        "method": extension.plan.method,
        "factor": extension.plan.factor,
        "original_context": extension.plan.original_context,
        "target": extension.target,
        "rope_parameters": extension.config.rope_parameters,
        "text": list(request.texts),
        "text_tokens": digest,
        "training": asdict(settings),
    }


def _weights(directory: Path) -> str:
    """A digest of which weights a checkpoint has, by the shards' names, sizes and ages."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _description(
    extension: Extension, settings: TrainingSettings, trained: int, device: str
) -> str:
    plan = extension.plan
    how = "every weight" if settings.lora is None else f"LoRA of rank {settings.lora.rank}"
    return (
        f"{plan.method}, factor {plan.factor:g}, {plan.original_context} to {extension.target} "
        f"tokens; {how} ({trained} numbers) on {device}; {settings.steps} steps of "
        f"{settings.windows} windows of {settings.length}, {settings.questions} of them pass "
        f"keys; rate {settings.rate:g}"
    )


@contextmanager
def _stop_asked() -> Iterator[threading.Event]:
    """Ctrl-C and a termination set an event, which a step is finished before."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {
        number: signal.signal(number, lambda *_: asked.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
