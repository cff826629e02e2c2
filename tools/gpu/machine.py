"""What a record says of the machine: device, driver, clocks, versions, commit."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tools.bench.measure import machine as processor

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "triton", "flashinfer-python", "numpy", "tensorrt-rtx")
_CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
_QUERY_SECONDS = 20


def missing() -> str | None:
    """What a run on a GPU lacks here, in one line with the fix; None where nothing is missing."""
    if find_spec("torch") is None:
        return "PyTorch is not installed: run this where a CUDA build of it is"
    import torch

    if not torch.cuda.is_available():
        return (
            f"PyTorch {torch.__version__} finds no CUDA GPU: run this on a machine with an NVIDIA "
            "GPU and a CUDA build of PyTorch"
        )
    return None


def compute_capability() -> str:
    """Of the first GPU, without the dot: 90."""
    import torch

    major, minor = torch.cuda.get_device_capability(0)
    return f"{major}{minor}"


def describe() -> dict[str, Any]:
    """Device, driver and versions; what is not there is absent or "not installed"."""
    import torch

    device = torch.cuda.get_device_properties(0)
    versions = {name: package_version(name) for name in _PACKAGES}
    return {
        "device": device.name,
        "compute_capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_mib": device.total_memory >> 20,
        "l2_mib": device.L2_cache_size >> 20,
        "driver": _nvidia_smi("driver_version"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **processor(torch.get_num_threads(), []),
        "kernel": platform.release(),
        **versions,
    }


def clocks() -> dict[str, str]:
    """Clocks, temperature and power of the device now; empty without nvidia-smi."""
    found = _nvidia_smi(",".join(_CLOCKS))
    return dict(zip(_CLOCKS, found.split(", "), strict=False)) if found else {}


def commit() -> str:
    """The checkout's commit, marked where tracked files differ from it; "unknown" without git."""
    head = _output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    if not head:
        return "unknown"
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return head + (" with changes" if changed else "")


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def slug(device: str) -> str:
    """A device's name in a file's: h100-80gb-hbm3."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    return "-".join(word for word in words if word != "nvidia")


def _nvidia_smi(query: str) -> str:
    return _output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"])


def _output(command: list[str]) -> str:
    """Of a command that may be missing or fail: empty then."""
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""
