"""The binding's structs against the compiler's own layout of ctx_kernels.h."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

from tools.gpu.kernels import (
    CACHE_TYPES,
    DATA_TYPES,
    HEADER,
    ROTATION_ON_WRITE,
    parameters,
    struct,
)

STRUCTS = (
    "CtxRotaryFrequenciesParams",
    "CtxScaledRotaryEmbeddingParams",
    "CtxSinkWindowAttentionParams",
)
ENUMERATORS = {
    **{f"CTX_DATA_TYPE_{name.upper()}": code for name, code in DATA_TYPES.items()},
    "CTX_CACHE_TYPE_SAME": CACHE_TYPES["same"],
    "CTX_CACHE_TYPE_FLOAT8_E4M3": CACHE_TYPES["float8"],
    "CTX_CACHE_TYPE_INT8": CACHE_TYPES["int8"],
    "CTX_ROTATION_ON_WRITE": ROTATION_ON_WRITE,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What a C program that includes the header prints: name → number."""
    lines = [f'printf("{name} %d\\n", (int) {name});' for name in ENUMERATORS]
    for name in STRUCTS:
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field, _ in struct(name)._fields_:
            at = f"offsetof({name}, {field})"
            lines.append(f'printf("{name}.{field} %zu\\n", {at});')
            size = f"sizeof((({name}*) 0)->{field})"
            lines.append(f'printf("size of {name}.{field} %zu\\n", {size});')
    folder = tmp_path_factory.mktemp("layout")
    source, program = folder / "layout.c", folder / "layout"
    includes = "#include <ctx_plugins/ctx_kernels.h>\n#include <stddef.h>\n#include <stdio.h>\n"
    source.write_text(f"{includes}int main(void) {{\n" + "\n".join(lines) + "\nreturn 0; }\n")
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "building the project needs a compiler"
    subprocess.run([compiler, f"-I{HEADER.parents[1]}", source, "-o", program], check=True)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {
        name: int(number) for name, _, number in (x.rpartition(" ") for x in printed.splitlines())
    }


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_lies_where_the_compiler_puts_it(compiled, name):
    kind = struct(name)
    assert ctypes.sizeof(kind) == compiled[name]  # so no field at the end was left out
    for field, _ in kind._fields_:
        assert getattr(kind, field).offset == compiled[f"{name}.{field}"]
        assert getattr(kind, field).size == compiled[f"size of {name}.{field}"]


def test_numbers_are_the_headers(compiled):
    assert {name: compiled[name] for name in ENUMERATORS} == ENUMERATORS


def test_parameters_know_their_size_and_are_zero_elsewhere():
    params = parameters("CtxScaledRotaryEmbeddingParams", heads=3)
    assert params.size == ctypes.sizeof(params) and params.heads == 3
    assert params.x is None and params.rotaryDim == 0
