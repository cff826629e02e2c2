"""The device of engine sessions, over a CUDA runtime of host memory (fake_cudart.c).

Oracle: the same in numpy; the fake refuses every address, size, direction and stream that is
wrong. Its functions were compared with cuda_runtime_api.h of CUDA 13.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from ctx_export.core.errors import UserError
from ctx_export.runtime.cache_codec import CacheCodec
from ctx_export.runtime.cuda import CudaDevice, _libraries
from ctx_export.runtime.device_cache import DeviceTensor

SOURCE = Path(__file__).with_name("fake_cudart.c")


def compiled(directory: Path, *options: str) -> str:
    library = directory / "libcudart.so.13"
    subprocess.run(["cc", "-shared", "-fPIC", *options, SOURCE, "-o", library], check=True)
    return str(library)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compiled(tmp_path_factory.mktemp("cudart"))


def test_bytes_go_up_and_come_down(library: str) -> None:
    device = CudaDevice(["libno_such_runtime.so", library])
    given = np.arange(12.0)
    address = device.malloc(given.nbytes)
    assert address > 1 << 32
    device.upload(address, given)
    found = np.empty_like(given)
    device.download(found, address)
    assert found.tolist() == given.tolist()
    device.zero(address + 16, 8)
    device.zero_rows((address + 48, 24), 8, 2)
    device.download(found, address)
    assert found.tolist() == [0, 1, 0, 3, 4, 5, 0, 7, 8, 0, 10, 11]
    device.upload_rows((address, 32), np.array([[20.0, 21], [22, 23], [24, 25]]), 3)
    device.copy_rows((address + 16, 32), (address, 32), 8, 3)
    device.download(found, address)
    assert found.tolist() == [20, 21, 20, 3, 22, 23, 22, 7, 24, 25, 24, 11]
    device.synchronize()
    device.free(address)
    device.close()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_caches_live_on_it(library: str, dtype: str) -> None:
    device = CudaDevice([library])
    tensor = DeviceTensor(device, (2, 3, 4, 5), CacheCodec(dtype=dtype))
    rows = np.arange(90.0).reshape(2, 3, 3, 5)  # exact in every precision
    tensor.write(np.array([1, 2, 0]), rows)
    tensor.resize(6)
    tensor.copy_row(0, 1, 2)
    tensor.zero(0, 1)
    expected = np.zeros((2, 3, 6, 5))
    expected[:, :, [1, 2, 0]] = rows
    expected[1, :, :2] = expected[0, :, :2]
    expected[0, :, 0] = 0
    np.testing.assert_array_equal(tensor.read(), expected)
    tensor.free()
    device.close()


def test_too_much_memory_names_the_fix(library: str) -> None:
    device = CudaDevice([library])
    with pytest.raises(UserError, match=r"the GPU has no 1048576 MiB left: use fewer tokens"):
        device.malloc(1 << 40)
    assert device._runtime.cudaGetLastError() == 0
    device.close()


def test_a_call_that_fails_says_which_and_why(library: str) -> None:
    device = CudaDevice([library])
    with pytest.raises(RuntimeError, match=r"cudaFree failed: invalid argument \(error 1\)"):
        device.free(4096)
    assert device._runtime.cudaGetLastError() == 0
    address = device.malloc(8)
    with pytest.raises(RuntimeError, match="cudaMemcpyAsync failed"):
        device.upload(address, np.zeros(2))
    with pytest.raises(RuntimeError, match="cudaMemcpy2DAsync failed"):
        device.copy_rows((address, 8), (address, 8), 8, 2)
    with pytest.raises(RuntimeError, match="cudaMemset2DAsync failed"):
        device.zero_rows((address, 4), 8, 1)
    device.free(address)


def test_no_runtime_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        CudaDevice(["libno_such_runtime.so"])
    assert str(caught.value) == (
        "the CUDA runtime (libcudart.so) is not installed: pip install nvidia-cuda-runtime, or "
        "use backend ort"
    )


def test_no_driver_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        CudaDevice([compiled(tmp_path, "-DNO_DRIVER")])
    assert str(caught.value) == (
        "the CUDA runtime cannot be used: cudaStreamCreate failed: CUDA driver version is "
        "insufficient for CUDA runtime version (error 35); update the GPU's driver, or use "
        "backend ort"
    )


def test_this_machine_has_a_device_or_says_why_not(capfd: pytest.CaptureFixture[str]) -> None:
    reason = ""
    try:
        CudaDevice().close()
    except UserError as error:
        reason = str(error)
    assert reason == "" or (reason.startswith("the CUDA runtime") and "backend ort" in reason)
    assert capfd.readouterr() == ("", "")


def test_the_runtime_of_nvidia_s_wheels_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layouts of nvidia-cuda-runtime 13 and of nvidia-cuda-runtime-cu12."""
    found = [tmp_path / "nvidia" / name / "lib" for name in ("cuda_runtime", "cu13")]
    for folder, version in zip(found, ("12", "13"), strict=True):
        folder.mkdir(parents=True)
        (folder / f"libcudart.so.{version}").touch()
    monkeypatch.syspath_prepend(tmp_path)
    wheels = [name for name in _libraries() if str(tmp_path) in name]
    assert sorted(wheels) == sorted(str(path) for f in found for path in f.iterdir())
