from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctx_export import scaling
from ctx_export.core.errors import UserError
from ctx_export.scaling.base import RotaryShape

# The methods that the first issue names, written out; the registry reads them from the folder.
ISSUE = {
    "none",
    "linear",
    "ntk",
    "ntk-by-parts",
    "yarn",
    "llama3",
    "longrope",
    "theta",
    "proportional",
}


def test_names_are_the_folder_s_modules():
    folder = Path(scaling.__file__).parent
    stems = {p.stem.replace("_", "-") for p in folder.glob("[!_]*.py")} - {"base"}
    assert set(scaling.names()) == stems
    assert stems >= ISSUE
    assert scaling.names() == tuple(sorted(scaling.names()))


def test_names_imports_no_method_and_no_numpy():
    code = (
        "import sys, ctx_export.scaling as s; s.names(); "
        "print([m for m in sys.modules if m == 'numpy' or m.startswith('ctx_export.scaling.')])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(ISSUE))
def test_every_method_says_what_it_is(name):
    method = scaling.methods()[name]
    assert method is scaling.find(name)
    assert method.summary
    assert method.source


def test_no_two_methods_share_a_name():
    every = [n for m in scaling.methods().values() for n in (m.name, *m.aliases)]
    assert len(every) == len(set(every))


def test_underscores_and_capitals_are_accepted():
    assert scaling.find("NTK_by_parts").name == "ntk-by-parts"


def test_unknown_name_lists_the_choices_and_the_nearest():
    with pytest.raises(UserError) as caught:
        scaling.find("yarm")
    message = str(caught.value)
    assert message.startswith("unknown method 'yarm', did you mean yarn?")
    assert all(name in message for name in ISSUE)


def test_factor_order(make_shape):
    shape = make_shape(64, original=1024)
    assert scaling.resolve("linear", shape, 8192).factor == 8.0
    assert scaling.resolve("linear", shape, 8192, parameters={"factor": 3}).factor == 3.0
    assert scaling.resolve("linear", shape, 8192, 2.0, {"factor": 3}).factor == 2.0


@pytest.mark.parametrize("factor", [0, -2.0, 0.5, True, float("nan"), float("inf"), "4"])
def test_a_factor_that_is_none_is_refused(factor, make_shape):
    with pytest.raises(UserError, match=r"rope_scaling.factor is .*at least 1"):
        scaling.resolve(
            "yarn", make_shape(), 8192, parameters={"factor": factor}, where="rope_scaling"
        )
    with pytest.raises(UserError, match=r"^factor is .*at least 1"):
        scaling.resolve("yarn", make_shape(), 8192, factor)


def test_target_below_the_original_context_is_refused(make_shape):
    with pytest.raises(UserError, match="target 4095 is below the original context of 4096"):
        scaling.resolve("yarn", make_shape(), 4095)


def test_keys_of_a_method_without_parameters(make_shape):
    with pytest.raises(
        UserError, match=r"scaling.mscale is unknown \(keys of this method: none\)"
    ):
        scaling.resolve("linear", make_shape(), 8192, parameters={"mscale": 1.0})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rotary_dim": 5}, "rotary dimension is 5 at head dimension 8"),
        ({"rotary_dim": 10}, "rotary dimension is 10"),
        ({"rotary_dim": 0}, "rotary dimension is 0"),
        ({"theta": 1.0}, "rope_theta is 1.0"),
        ({"theta": float("nan")}, "rope_theta is nan"),
        ({"original_context": 0}, "original_context is 0"),
    ],
)
def test_a_shape_that_cannot_rotate_is_refused(changed, message):
    values = {
        "head_dim": 8,
        "rotary_dim": 8,
        "theta": 1e4,
        "original_context": 16,
        "max_position_embeddings": 16,
    }
    with pytest.raises(UserError, match=message):
        RotaryShape(**{**values, **changed})
