"""The commands of the C++ test program ctx_runtime_script, and the same on a Python session."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctx_export.runtime.session import Session

Rows = dict[int, list[int]]
CLEAR = 1e-4  # logits; a choice by less could be another one in another order of summation


def feed(rows: Rows, plan: int | None = None) -> str:
    return f"feed {plan or '-'} {_rows(rows)}"


def generate(rows: Rows, count: int, plan: int | None = None) -> str:
    return f"generate {count} {plan or '-'} {_rows(rows)}"


def in_cpp(
    program: Path, package: Path, checkpoint: Path, lines: Sequence[str], *, batch: int, chunk: int
) -> list[str]:
    """What the C++ runtime answers with the software engine."""
    run = subprocess.run(
        [program, package, checkpoint, str(batch), str(chunk)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


class PythonSession:
    """Answers as the program does; `closest` is the smallest lead of a chosen token's logit."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.closest = float("inf")

    def answer(self, line: str) -> str:
        command, *arguments = line.split(" ")
        session = self._session
        if command == "feed":
            plan, rows = _plan(arguments[0]), _parsed(arguments[1:])
            return _answer({row: [token] for row, token in self._fed(rows, plan).items()})
        if command == "generate":
            count, plan = int(arguments[0]), _plan(arguments[1])
            return self._generated(_parsed(arguments[2:]), count, plan)
        if command == "truncate":
            session.truncate(int(arguments[0]), int(arguments[1]))
        elif command == "reset":
            session.reset([int(arguments[0])])
        elif command == "fork":
            target = None if arguments[1] == "-" else int(arguments[1])
            return f"ok {session.fork(int(arguments[0]), target)}"
        elif command == "lengths":
            return "ok " + " ".join(map(str, session.seen))
        elif command == "capacity":
            return f"ok {session.capacity}"
        else:
            raise ValueError(f"command {command} is unknown")
        return "ok"

    def _generated(self, rows: Rows, count: int, plan: int | None) -> str:
        """Greedy, one rope length for the whole request, as `runtime.generate` has it."""
        contract = self._session.contract
        planned: int | list[int] | None = plan
        if contract.rope_length is not None and plan is None:
            planned = [int(seen) for seen in self._session.seen]
            for row, ids in rows.items():
                wanted = planned[row] + len(ids) + count
                planned[row] = min(wanted, contract.max_context or wanted)
        made: Rows = {row: [] for row in rows}
        chosen = self._fed(rows, planned)
        while True:
            for row, token in chosen.items():
                made[row].append(token)
            if len(made[next(iter(rows))]) == count:
                return _answer(made)
            chosen = self._fed({row: [token] for row, token in chosen.items()}, planned)

    def _fed(self, rows: Rows, plan: int | list[int] | None) -> dict[int, int]:
        batch = self._session.batch
        lengths = [len(rows.get(row, [])) for row in range(batch)]
        ids = np.zeros((batch, max(lengths)), np.int64)
        for row, tokens in rows.items():
            ids[row, : len(tokens)] = tokens
        logits = self._session.feed(ids, plan, lengths=lengths, logits="last")
        best = np.sort(logits[list(rows)], axis=-1)
        self.closest = min(self.closest, float((best[:, -1] - best[:, -2]).min()))
        return {row: int(np.argmax(logits[row])) for row in rows}


def _rows(rows: Rows) -> str:
    return " ".join(f"{row}:{','.join(map(str, ids))}" for row, ids in rows.items())


def _parsed(words: Sequence[str]) -> Rows:
    split = (word.split(":") for word in words)
    return {int(row): [int(token) for token in ids.split(",")] for row, ids in split}


def _plan(word: str) -> int | None:
    return None if word == "-" else int(word)


def _answer(rows: Rows) -> str:
    return f"ok {_rows(rows)}"
