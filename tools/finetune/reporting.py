"""What a run says while it works: a line redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TextIO

from tools.finetune.training import Step

_EVERY = 10  # steps between lines that stay
_MEAN = 10  # steps that the loss shown is a mean of


class Reporter:
    """Shows steps with the time left, reckoned from the steps of this process."""

    def __init__(self, stream: TextIO, steps: int, done: int) -> None:
        self._stream, self._steps, self._first = stream, steps, done
        self._started = time.monotonic()
        self._losses: list[float] = []

    def step(self, step: Step) -> None:
        """Show a finished step."""
        self._losses = [*self._losses[-_MEAN + 1 :], step.loss]
        passed = (time.monotonic() - self._started) / (step.step - self._first)
        loss = sum(self._losses) / len(self._losses)
        left = format_seconds(passed * (self._steps - step.step))
        line = (
            f"step {step.step}/{self._steps}  loss {loss:.3f}  rate {step.rate:.2g}  "
            f"{passed:.2f} s/step  {left} left"
        )
        stays = step.step % _EVERY == 0 or step.step == self._steps
        if self._stream.isatty():
            self._stream.write(f"\r{line}\x1b[K" + ("\n" if stays else ""))
        elif stays:
            self._stream.write(line + "\n")
        self._stream.flush()


def format_seconds(seconds: float) -> str:
    """A time for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
