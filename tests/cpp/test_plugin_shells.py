"""The plugin shells without TensorRT: a C++ program calls them in its place, the host executes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernels.host_build import build

CASES = [
    "attention_equals_the_kernel",
    "rotation_reaches_the_kernel",
    "layouts_reach_the_kernel",
    "layouts_that_do_not_fit_are_refused",
    "rotation_that_lacks_its_inputs_is_refused",
    "quantised_attention_equals_the_kernel",
    "cache_types_go_with_the_scales",
    "workspace_is_that_of_the_largest_shapes",
    "landmark_equals_the_kernel",
    "landmark_workspace_is_that_of_the_largest_shapes",
    "landmark_types_are_those_of_q",
    "landmark_attributes_that_do_not_fit_are_refused",
    "self_extend_equals_the_kernel",
    "dual_chunk_equals_the_kernel",
    "memory_equals_the_kernel",
    "parts_workspace_is_that_of_the_largest_shapes",
    "parts_attributes_that_do_not_fit_are_refused",
    "rotary_equals_the_kernel",
    "frequencies_equal_the_kernel",
    "enqueue_allocates_nothing",
    "serialised_fields_make_the_same_plugin",
    "a_plugin_without_attributes_serialises_none",
    "failures_reach_the_logger",
    "shapes_that_disagree_are_refused",
    "tables_of_other_shapes_are_refused",
]


@pytest.fixture(scope="session")
def program() -> Path:
    return build("ctx_plugin_shells_test")


@pytest.mark.parametrize("case", CASES)
def test_shells(program: Path, case: str) -> None:
    run = subprocess.run(
        [str(program), case],
        env={**os.environ, "FAKE_TENSORRT_DIRECTORY": str(program.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
