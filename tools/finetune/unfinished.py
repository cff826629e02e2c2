"""A run that is not finished: its state, losses and settings in OUT.partial beside OUT."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctx_export.core.errors import UserError
from tools.finetune.training import Step, Training

LOG = "finetune.jsonl"  # a line per step
RECORD = "finetune.json"  # what the run was
_STATE = "state.pt"


class Unfinished:
    """The folder of a run. `record` is what must be the same for a run to go on."""

    def __init__(self, output: Path, record: Mapping[str, Any], *, restart: bool) -> None:
        self.folder = output.with_name(output.name + ".partial")
        self._record = json.loads(json.dumps(record))
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a directory: remove it, or choose another -o")
        if restart and self.folder.is_dir():
            shutil.rmtree(self.folder)
        stored = self._stored()
        if stored is not None and stored != self._record:
            raise UserError(self._difference(stored))
        self.folder.mkdir(exist_ok=True)
        if stored is None:
            self._replace(RECORD, json.dumps(self._record, indent=1) + "\n")

    def _stored(self) -> Any:
        path = self.folder / RECORD
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}; give --restart") from None

    def _difference(self, stored: Mapping[str, Any]) -> str:
        keys = sorted({*stored, *self._record})
        key = next(k for k in keys if stored.get(k) != self._record.get(k))
        return (
            f"{self.folder} holds an interrupted run whose {key} is {stored.get(key)!r}, not "
            f"{self._record.get(key)!r}: repeat its options to go on, or give --restart"
        )

    def resume(self, training: Training) -> None:
        """Go on where the state was saved; losses of later steps are computed again."""
        if (self.folder / _STATE).is_file():
            training.load(self.folder / _STATE)
        lines = self.losses()[: training.done]
        self._replace(LOG, "".join(line + "\n" for line in lines))

    def losses(self) -> list[str]:
        """The log's lines."""
        path = self.folder / LOG
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    def add(self, step: Step) -> None:
        """Log a step."""
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(step)) + "\n")

    def save(self, training: Training) -> None:
        """Save the state."""
        training.save(self.folder / _STATE)

    def finish(self, directory: Path) -> None:
        """Put the record and the log into the finished checkpoint."""
        for name in (RECORD, LOG):
            shutil.copyfile(self.folder / name, directory / name)

    def remove(self) -> None:
        """Forget the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _replace(self, name: str, content: str) -> None:
        part = self.folder / (name + ".writing")
        part.write_text(content, encoding="utf-8")
        os.replace(part, self.folder / name)
