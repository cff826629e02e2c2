"""What every test runs under: no network, and gpu tests only where there is a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ctx_export.targets._cuda_device import missing_gpu

if TYPE_CHECKING:
    from tests.support.recording import Support

# Set before transformers or huggingface_hub are imported: tests never ask a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugin-library",
        metavar="PATH",
        help="libctx_plugins.so of the kernels' gpu tests (default: the one make setup installs)",
    )
    parser.addoption(
        "--record-support",
        metavar="PATH",
        type=Path,
        help="keep what is measured of each family there; README's table shows docs/support.json",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu need one; the reason says what the driver answered."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    reason = missing_gpu() if gpu_items else None
    if reason is not None:
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def support(request: pytest.FixtureRequest) -> Iterator[Support]:
    """Takes what tests measure of each family; --record-support keeps it."""
    from tests.support.decoders import DECODERS
    from tests.support.recording import Support

    taken = Support({name: decoder.apart for name, decoder in DECODERS.items()})
    yield taken
    path = request.config.getoption("--record-support")
    if path is not None:
        taken.write(path)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules whose matrices are so small that PyTorch's threads only wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
