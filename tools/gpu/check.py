"""Answers of sampled rows in float32, and the gate that every measured side has to pass first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MOST_SEQUENCES = 3
_MOST_ROWS = 16
# Rounding an output once, relative, root mean square; float32: sums in another order.
_FLOORS = {"float32": 1e-5, "float16": 2.0**-12, "bfloat16": 2.0**-9}


class WrongResult(Exception):
    """A side whose numbers are not those of the operation it is measured for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Queries [B,Hq,S,D] at the last S of N positions, keys and values [B,Hkv,N,D]."""

    query: Tensor
    key: Tensor
    value: Tensor
    sinks: int = 0
    window: int = 0

    @property
    def rows(self) -> int:
        return int(self.query.shape[2])

    @property
    def keys(self) -> int:
        return int(self.key.shape[2])

    @property
    def groups(self) -> int:
        return int(self.query.shape[1] // self.key.shape[1])

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.query.shape[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """`answers` [b,Hq,R,D] in float32 of some rows of some sequences; `limits` [b,R] bound the
    error's length relative to the answer's, over heads and dimensions."""

    sequences: list[int]
    rows: list[int]
    answers: Tensor
    limits: Tensor


def expect(problem: Problem) -> Expected:
    """Of rows spread over the problem, the first and the last among them."""
    import torch

    rows = sample(problem.rows, _MOST_ROWS)
    position = torch.tensor(rows, device=problem.query.device) + problem.keys - problem.rows
    key_position = torch.arange(problem.keys, device=problem.query.device)
    distance = position[:, None] - key_position
    visible = distance >= 0
    if problem.window:
        visible &= (distance < problem.window) | (key_position < problem.sinks)
    sequences = sample(int(problem.query.shape[0]), MOST_SEQUENCES)
    pairs = [_attend(problem, b, rows, visible) for b in sequences]
    return expectation(sequences, rows, pairs, problem.query)


def expectation(
    sequences: list[int], rows: list[int], pairs: list[tuple[Tensor, Tensor]], query: Tensor
) -> Expected:
    """From (float32 answers, answers in the precision of `query`) [Hq,R,D] of each sequence: the
    error may be twice that of PyTorch in that precision, and one rounding."""
    import torch

    floor = _FLOORS[str(query.dtype).removeprefix("torch.")]
    return Expected(
        sequences=sequences,
        rows=rows,
        answers=torch.stack([exact for exact, _ in pairs]),
        limits=torch.stack([2 * _distance(low.float(), exact) + floor for exact, low in pairs]),
    )


def assert_right(output: Tensor, expected: Expected) -> None:
    """Raises WrongResult where a sampled row of `output` [B,Hq,S,D] is further off than allowed,
    NaN included."""
    for index, sequence in enumerate(expected.sequences):
        found = output[sequence][:, expected.rows].float()
        errors = _distance(found, expected.answers[index])
        wrong = ~(errors <= expected.limits[index])
        if bool(wrong.any()):
            at = int(wrong.int().argmax())
            raise WrongResult(
                f"row {expected.rows[at]} of sequence {sequence} is off by "
                f"{float(errors[at]):.2e} of its length, allowed is "
                f"{float(expected.limits[index][at]):.2e}"
            )


def sample(count: int, most: int) -> list[int]:
    """Up to `most` of range(count), the ends included, spread evenly off the tiles' borders."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
    """softmax(q·k) v in the inputs' precision: query [Hq,R,D], key and value [Hkv,N,D], visible
    [R,N]; heads of a group follow each other."""
    heads, rows, dim = query.shape
    grouped = query.reshape(key.shape[0], -1, dim)
    logits = ((grouped @ key.transpose(-1, -2)) * scale).reshape(heads, rows, -1)
    weights = logits.masked_fill(~visible, -float("inf")).softmax(-1)
    return (weights.reshape(key.shape[0], -1, key.shape[1]) @ value).reshape(heads, rows, -1)


def _attend(
    problem: Problem, sequence: int, rows: list[int], visible: Tensor
) -> tuple[Tensor, Tensor]:
    query = problem.query[sequence][:, rows]
    key, value = problem.key[sequence], problem.value[sequence]
    exact = attend(query.float(), key.float(), value.float(), visible, problem.scale)
    return exact, attend(query, key, value, visible, problem.scale)


def _distance(found: Tensor, answer: Tensor) -> Tensor:
    """Length of the difference over that of the answer, for each row of [Hq,R,D]."""
    lengths = answer.square().sum((0, 2)).sqrt()
    result: Tensor = (found - answer).square().sum((0, 2)).sqrt() / lengths
    return result
