"""Calls moved to a device: here one of host memory, on which the host library runs the kernels.

Oracle: the same call run in place; writes that must be noticed are made by hand.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest

from tests.kernels.attention_cases import Shape, make_case, run_case
from tests.kernels.host_build import build
from tests.kernels.kernel_library import (
    Buffer,
    Call,
    KernelError,
    KernelLibrary,
    RotaryParams,
    on_device,
)

CASE = make_case(Shape(seen=(0, 13), new=(5, 2), rows=5, capacity=20, groups=2, head_sink=True))


class HostMemory:
    """The part of a `Device` that moves bytes, over memory of its own."""

    stream = 0

    def __init__(self) -> None:
        self.live: dict[int, np.ndarray] = {}

    def malloc(self, nbytes):
        memory = np.full(nbytes + 256, 0xEE, np.uint8)
        address = memory.ctypes.data + -memory.ctypes.data % 256  # cudaMalloc's alignment
        self.live[address] = memory
        return address

    def free(self, address):
        del self.live[address]

    def upload(self, address, array):
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array, address):
        ctypes.memmove(array.ctypes.data, address, array.nbytes)


@pytest.fixture(scope="module")
def path():
    return build("ctx_kernels_host")


def rotary_call(misalign=0):
    """A pair (1, 0) at position 3 with frequency 0.5, in a call that the host can run."""
    params = RotaryParams(
        size=ctypes.sizeof(RotaryParams), batch=1, heads=1, rows=1, headDim=2, rotaryDim=2
    )
    params.frequencyBatch = params.multiplierBatch = 1
    call = Call(params)
    call.point("x", np.array([1, 0], np.float32), misalign)
    call.point("positions", np.array([[3]]))
    call.point("inverseFrequency", np.array([[0.5]], np.float32))
    call.point("multiplier", np.ones(1, np.float32))
    call.point("y", np.zeros(2, np.float32), misalign)
    return call


@pytest.mark.parametrize("alias", [False, True])
def test_a_call_on_a_device_gives_what_it_gives_in_place(path, alias):
    memory = HostMemory()
    expected = run_case(KernelLibrary(path), CASE, "float32", alias=alias)
    found = run_case(KernelLibrary(path, memory), CASE, "float32", alias=alias)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not memory.live


@pytest.mark.parametrize("misalign", [0, 4, 12])
def test_alignment_is_kept_on_the_device(path, misalign):
    call = rotary_call(misalign)
    with on_device(call, HostMemory()) as params:
        assert params.x % 64 == call.params.x % 64 == misalign
        assert params.x != call.params.x
    KernelLibrary(path, HostMemory()).run("ctxScaledRotaryEmbedding", call, ("y",))
    np.testing.assert_allclose(call.buffers["y"].values, [np.cos(1.5), np.sin(1.5)], atol=1e-6)


def test_an_alias_is_one_memory_on_the_device():
    call = rotary_call()
    call.params.y = call.params.x + 4
    with on_device(call, HostMemory()) as params:
        assert params.y == params.x + 4


@pytest.mark.parametrize(("offset", "said"), [(-1, "before the buffer"), (8, "past the buffer")])
def test_a_write_beside_a_buffer_on_the_device_is_noticed(offset, said):
    call = rotary_call()
    with on_device(call, HostMemory()) as params:
        ctypes.memset(params.y + offset, 0, 1)
    with pytest.raises(AssertionError, match=said):
        call.buffers["y"].assert_guards_untouched()


def test_a_changed_input_is_noticed(path):
    with pytest.raises(AssertionError, match="y was written"):
        KernelLibrary(path, HostMemory()).run("ctxScaledRotaryEmbedding", rotary_call(), ())


def test_a_refused_call_leaves_nothing_on_the_device(path):
    memory, call = HostMemory(), rotary_call()
    call.params.positions = None
    with pytest.raises(KernelError, match="null tensor"):
        KernelLibrary(path, memory).run("ctxScaledRotaryEmbedding", call, ("y",))
    assert not memory.live


def test_an_address_of_nothing_is_an_error_of_the_test():
    call = rotary_call()
    call.params.x = 4096
    with (
        pytest.raises(AssertionError, match="x points into no buffer"),
        on_device(call, HostMemory()),
    ):
        pass


def test_an_attention_gets_the_workspace_it_asks_for(path, monkeypatch):
    """A library that asks for 40 bytes: they are guarded, all ones, and may be written."""
    seen = []
    library = KernelLibrary(path)
    monkeypatch.setattr(library._kernels, "workspace", lambda params: 40)

    def launch(function, call):
        seen.append((call.params.workspaceBytes, call.buffers["workspace"].values.tobytes()))
        assert call.params.workspace % 16 == 0
        call.buffers["workspace"].values[:] = 1
        return 0, ""

    monkeypatch.setattr(library, "_launch", launch)
    call = rotary_call()
    call.params = type("Params", (), {"workspace": None, "workspaceBytes": 0})()
    library.run("ctxSinkWindowAttention", call, (), workspace=True)
    assert seen == [(40, b"\xff" * 40)]


def test_a_buffer_holds_its_values_between_guards():
    buffer = Buffer(np.arange(3, dtype=np.int64), misalign=8)
    assert buffer.pointer % 64 == 8 and buffer.values.tolist() == [0, 1, 2]
    assert buffer.memory.nbytes >= buffer.values.nbytes + 512
    buffer.assert_guards_untouched()


def test_the_reference_case_has_its_own_answers(path):
    """Two calls that differ give results that differ: comparing them is no test of nothing."""
    library = KernelLibrary(path, HostMemory())
    other = replace(CASE, scale=CASE.scale * 2)
    first, second = (run_case(library, case, "float32")[0] for case in (CASE, other))
    assert np.abs(first - second).max() > 0.01
