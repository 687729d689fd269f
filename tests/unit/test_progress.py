"""Progress lines: not too many, always the last, and the time left at the pace so far."""

import pytest

from llmpq.progress import Progress, time_left


def test_time_left_is_at_the_pace_so_far() -> None:
    assert time_left(10.0, 1, 4) == "30 s left"
    assert time_left(10.0, 2.5, 5.0) == "10 s left"
    assert time_left(10.0, 4, 4) == "done"


def test_a_line_in_five_seconds_and_always_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    said: list[str] = []
    progress = Progress("calibrate", 8, said.append)
    for second in range(1, 9):
        now = float(second)
        progress.step("layers")
    assert said == ["calibrate: 5/8 layers, 5 s, 3 s left", "calibrate: 8/8 layers, 8 s, done"]
