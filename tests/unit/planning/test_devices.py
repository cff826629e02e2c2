from __future__ import annotations

import pytest

from ctx_export.core.errors import UserError
from ctx_export.planning.devices import (
    Budget,
    budgets,
    devices,
    find_devices,
    parse_memory,
    parse_share,
)

GIB = 1 << 30
# Memory in GB and bandwidth in GB/s, as NVIDIA's product pages state them.
PUBLISHED = {
    "Jetson Orin Nano 8GB": (8, 102),
    "Jetson AGX Orin 64GB": (64, 204.8),
    "GeForce RTX 4090": (24, 1008),
    "GeForce RTX 5090": (32, 1792),
    "L4": (24, 300),
    "A100 80GB": (80, 2039),
    "H100 SXM": (80, 3350),
    "H200": (141, 4800),
}


def test_devices_have_what_their_maker_states() -> None:
    found = {device.name: device for device in devices()}
    for name, (memory, bandwidth) in PUBLISHED.items():
        assert found[name].memory_bytes == memory * GIB
        assert found[name].bandwidth == bandwidth * 1e9


def test_every_entry_is_whole() -> None:
    for device in devices():
        assert device.source.startswith("https://") and "nvidia.com" in device.source
        assert device.memory_bytes >= 4 * GIB
        assert device.bandwidth is None or 30e9 < device.bandwidth < 10e12
        assert float(device.compute_capability) >= 8.0
        assert device.shared == device.name.startswith("Jetson")


def test_every_name_and_alias_finds_one_device() -> None:
    words = [word for device in devices() for word in (device.name, *device.aliases)]
    assert len({word.lower().replace(" ", "-") for word in words}) == len(set(words))
    for device in devices():
        for word in (device.name, device.name.upper(), *device.aliases):
            assert find_devices(word) == (device,)
    assert find_devices("all") == devices()


def test_an_unknown_device_is_told_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown device 'h20', did you mean h200\? \(give --memory"
    ):
        find_devices("h20")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8_000_000_000),
        ("8gib", 8 * GIB),
        ("7.5 GiB", 15 * GIB // 2),
        ("512MB", 512_000_000),
        ("1TB", 10**12),
        ("4096", 4096),
        ("4096B", 4096),
        ("9007199254740993", 2**53 + 1),  # no float64
    ],
)
def test_memory_reads_as_people_write_it(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "8 apples", "-8GB", "0GB", "8G", 400 * "9"])
def test_other_memory_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write for example 8GB"):
        parse_memory(text)


def test_a_share_is_a_part_or_a_percentage() -> None:
    assert [parse_share(text) for text in ("10%", "0.25", "0", "12.5 %")] == [0.1, 0.25, 0, 0.125]
    for text in ("100%", "1", "-1", "some", "5"):
        with pytest.raises(UserError, match="reserve"):
            parse_share(text)


def test_budgets_come_once_and_in_order() -> None:
    found = budgets(("8GB",), ("h100", "H100 SXM", "l4"))
    assert [budget.name for budget in found] == ["8GB", "H100 SXM", "L4"]
    assert found[0] == Budget(name="8GB", memory_bytes=8 * 10**9)
    assert found[0].milliseconds(10) is None
    assert found[1].milliseconds(335 * 10**9) == pytest.approx(100)
