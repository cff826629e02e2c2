"""CudaTimer over a torch.cuda that only keeps a log: what is recorded around which run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tools.gpu.timing import CudaTimer

torch = pytest.importorskip("torch")


@pytest.fixture
def log(monkeypatch):
    """The order of events; the clock advances only in runs, by `log.ms`."""
    found = SimpleNamespace(events=[], now=0.0, ms=2.0)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            found.events.append("record")
            self.at = found.now

        def elapsed_time(self, end):
            assert found.events[-1] == "synchronize"
            return end.at - self.at

    memory = SimpleNamespace(zero_=lambda: found.events.append("flush"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: found.events.append("lead"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: found.events.append("synchronize"))
    properties = SimpleNamespace(L2_cache_size=100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch, "empty", lambda size, **_: memory)
    return found


def run_of(log):
    def run():
        log.events.append("run")
        log.now += log.ms

    return run


@pytest.mark.parametrize("cold", [True, False])
def test_only_the_run_lies_between_its_events(log, cold):
    CudaTimer(0.01).measure(run_of(log), cold=cold)
    before = ["flush", "lead"] if cold else ["lead"]
    assert log.events[: len(before) + 3] == [*before, "record", "run", "record"]
    assert log.events.count("flush") == (log.events.count("run") if cold else 0)


@pytest.mark.parametrize(("ms", "count"), [(2.0, 50), (0.001, 200), (1000.0, 5)])
def test_runs_fill_the_time_within_limits(log, ms, count):
    log.ms = ms
    times = CudaTimer(0.1).measure(run_of(log), cold=True)
    assert len(times) == count and times == pytest.approx([ms] * count)
    assert log.events.count("run") == count + 3  # three to warm up
