"""Commands in a process of their own, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

RunPython = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python() -> RunPython:
    """Run a program with this interpreter and this import path."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )

    return run
