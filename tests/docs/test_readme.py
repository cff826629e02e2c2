"""README's commands do what README shows: they are run here, in order, and their output compared.

A line of a ```console block that begins with "$ " is a command, what follows is its output, in
which "…" stands for anything; numbers that time or memory decide may differ.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
# What differs from run to run: seconds, rates, sizes, and errors in their last digits.
VARYING = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(README) if found == language]


def commands() -> list[tuple[str, list[str]]]:
    """(command, lines of output) in the order of the README."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def matches(shown: str, printed: str) -> bool:
    """Whether a line of output is the README's, numbers aside; "…" stands for anything."""
    pattern = re.escape(VARYING.sub("#", shown.rstrip())).replace("…", ".*")
    return re.fullmatch(pattern, VARYING.sub("#", printed.rstrip())) is not None


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder to run in; README's commands build on each other."""
    return tmp_path_factory.mktemp("readme")


def run(command: str, folder: Path) -> str:
    """Standard output of a command run as if from the checkout, with `folder` as its place."""
    environment = dict(
        os.environ, COLUMNS="100", PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'exporter'}"
    )
    binaries = Path(sys.executable).parent
    environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"
    finished = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = finished.stdout + finished.stderr
    assert finished.returncode == 0, f"{command} exits {finished.returncode}:\n{said}"
    return finished.stdout


def test_the_commands_print_what_the_readme_shows(workplace):
    shown_commands = commands()
    assert shown_commands
    for command, shown in shown_commands:
        printed = run(command, workplace).splitlines()
        position = 0
        for line in filter(None, shown):
            if line.strip() == "…":
                continue
            found = [i for i, p in enumerate(printed[position:], position) if matches(line, p)]
            assert found, f"{command}: no line after line {position} is {line!r} in\n" + "\n".join(
                printed
            )
            position = found[0] + 1


def test_the_python_example_runs(workplace):
    (example,) = blocks("python")
    (workplace / "example.py").write_text(example, encoding="utf-8")
    shown = [line.split("# ", 1)[1] for line in example.splitlines() if "print(" in line]
    assert shown
    assert run("python example.py", workplace).splitlines() == shown


def test_the_make_targets_named_in_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    documents = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`|\$ )make (?:[A-Z]+=\S+ )?([a-z]+)", documents, re.MULTILINE))
    assert {"demo", "test", "setup", "check"} <= named <= targets


def test_every_folder_of_the_map_exists():
    (folders,) = (text for text in blocks("") if text.startswith("exporter/"))
    parent = Path()
    for line in folders.splitlines():
        name = Path(line.split()[0])
        parent = parent if line.startswith(" ") else name
        path = parent / name if line.startswith(" ") else name
        assert (ROOT / path).is_dir(), f"{path} is in the README's map and not in the tree"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("built in 3.1 s", "built in 12 s", True),
        ("package a/b", "package a/c", False),
        ("engine …, 15 layers", "engine model.engine (x), 15 layers", True),
        ("1 2", "1 2 3", False),
    ],
)
def test_lines_are_compared_with_numbers_aside(shown, printed, same):
    assert matches(shown, printed) is same
