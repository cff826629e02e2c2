import io

import pytest

from ctx_export.core.progress import TerminalProgress, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89.4, "89 s"), (91, "2 min"), (5399, "1 h 30 min"), (11100, "3 h 05 min")],
)
def test_times_are_told_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_the_time_left_is_at_the_pace_since_the_first_update(monkeypatch):
    """What an earlier run had done took no time now."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = TerminalProgress(stream)
    progress.stage("needles")
    progress.update(60, 100)
    now[0] += 1
    progress.update(61, 100)
    assert "left" not in stream.getvalue()
    now[0] += 9
    progress.update(70, 100)  # ten in ten seconds, thirty to go
    assert stream.getvalue().split("\r")[-1].strip().startswith("needles")
    assert "70/100, 30 s left" in stream.getvalue()
    progress.stage("next")
    now[0] += 1
    progress.update(1, 100)
    assert "left" not in stream.getvalue().split("next")[-1]
