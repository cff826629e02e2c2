"""What a worker keeps open between cells, and what a finished cell is known by."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctx_export.evaluation import needle_run
from ctx_export.evaluation.needle import Cell, NeedleSetting
from ctx_export.evaluation.needle_run import Job, NeedleRun, _content, _key
from ctx_export.evaluation.scoring import Ints, Scores
from ctx_export.evaluation.subject import Opening
from tests.unit.evaluation.fakes import letters

SETTING = NeedleSetting(lengths=(200,), depths=(0.0, 0.5), keys=1)
CELL = Cell(length=200, depth=0.5)
JOB = Job(
    subject="fake",
    package=Path("package"),
    checkpoint=None,
    cell=CELL,
    setting=SETTING,
    opening=Opening(),
    text=Path("text"),
    content="first",
    key="key",
)


class Counted:
    """Notes how many calls are in it at once."""

    name, limit = "counted", None

    def __init__(self) -> None:
        self.inside = self.most = 0

    def score(self, tokens: Ints, first: int) -> Scores:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.02)
        self.inside -= 1
        targets = tokens[first:]
        return Scores.of(np.zeros((len(targets), 256), np.float32), targets)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Counted]]:
    """Every subject that jobs open."""
    made: list[Counted] = []

    def opening(_: Job) -> Counted:
        made.append(Counted())
        return made[-1]

    monkeypatch.setattr(needle_run, "_open_subject", opening)
    monkeypatch.setattr(needle_run, "_tokens", lambda _: (letters(), np.full(50, 97)))
    needle_run.close_open()
    yield made
    needle_run.close_open()


def test_threads_of_a_worker_share_one_session_one_at_a_time(opened):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(needle_run.measure_job, [JOB] * 8))
    assert len(opened) == 1 and opened[0].most == 1
    assert results == [results[0]] * 8


def test_a_worker_opens_files_again_that_changed_since_the_last_run(opened):
    for content in ("first", "first", "second"):
        needle_run.measure_job(replace(JOB, content=content))
    assert len(opened) == 2


def _folder(place: Path) -> Path:
    place.mkdir()
    for name in ("manifest.json", "model.onnx", "tokenizer.json"):
        (place / name).write_text(name)
    return place


def test_a_cell_is_known_by_package_text_checkpoint_and_providers(tmp_path):
    package, one, other = (_folder(tmp_path / name) for name in ("package", "one", "other"))
    (other / "model.safetensors").write_text("of another model")

    def key(text="t", checkpoint=None, providers=()):
        asked = NeedleRun(
            packages=(package,),
            text=Path("text"),
            setting=SETTING,
            opening=Opening(providers=providers),
            checkpoint=checkpoint,
        )
        found = _content(package, text, checkpoint)
        return _key(asked, CELL, found, torch=checkpoint is not None)

    keys = [
        key(),
        key(text="u"),
        key(providers=("CUDAExecutionProvider",)),
        key(checkpoint=one),
        key(checkpoint=other),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == key() and keys[3] == key(checkpoint=one)
    (package / "model.onnx").write_text("exported again")
    assert key() != keys[0]
