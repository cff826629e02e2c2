"""Cache policies against FORMULAS section 3, numbers written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctx_export import cache, scaling
from ctx_export.cache.base import Bounds

BOUNDS = Bounds(sinks=4, window=60, original_context=256)


def test_names_are_the_folder_s_modules():
    folder = Path(cache.__file__).parent
    stems = {p.stem.replace("_", "-") for p in folder.glob("[!_]*.py")} - {"base"}
    assert set(cache.names()) == stems >= {"sliding-window", "streaming", "lm-infinite"}


def test_names_import_no_policy():
    code = (
        "import sys, ctx_export.cache as c; c.names(); "
        "print([m for m in sys.modules if m.startswith('ctx_export.cache.')])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_no_policy_is_called_like_a_scaling_method():
    methods = [n for m in scaling.methods().values() for n in (m.name, *m.aliases)]
    policies = [n for p in cache.policies().values() for n in (p.name, *p.aliases)]
    assert len({*methods, *policies}) == len(methods) + len(policies)


@pytest.mark.parametrize("name", ["streaming", "streaming-llm", "Streaming_LLM"])
def test_names_and_aliases_are_found(name):
    found = cache.find(name)
    assert found is not None and found.name == "streaming"


def test_another_name_is_none():
    assert cache.find("yarn") is None


@pytest.mark.parametrize(
    ("name", "position"),
    # Rank of the query among 4 sinks and 60 tokens; the last trained position.
    [("streaming", 63), ("lm-infinite", 255)],
)
def test_queries_meet_the_sinks_at(name, position):
    assert cache.policies()[name].sink_position(BOUNDS) == position


@pytest.mark.parametrize(
    ("name", "bounds", "reason"),
    [
        ("sliding-window", BOUNDS, "--sinks is 4: leave it out, or choose --method streaming"),
        (
            "lm-infinite",
            Bounds(sinks=4, window=257, original_context=256),
            "window 257 is beyond the original context of 256",
        ),
    ],
)
def test_bounds_that_cannot_work_are_refused(name, bounds, reason):
    told = cache.policies()[name].refusal(bounds)
    assert told is not None and reason in told


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("sliding-window", Bounds(sinks=0, window=60, original_context=256)),
        ("lm-infinite", Bounds(sinks=4, window=256, original_context=256)),
        ("streaming", Bounds(sinks=4, window=1, original_context=256)),
    ],
)
def test_bounds_that_work_are_not(name, bounds):
    assert cache.policies()[name].refusal(bounds) is None
