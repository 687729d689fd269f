"""Cutting planes: the maximum of a concave, piecewise linear function, within what is allowed, and no more work than needed."""

import numpy as np
import pytest

from llmpq.plan.ascent import ascend

PIECES = [(np.array([1.0, 0.0]), 0.0), (np.array([-1.0, 0.0]), 4.0), (np.array([0.0, 1.0]), 1.0), (np.array([0.0, -1.0]), 3.0)]


class Counted:
    """min over PIECES of slope · x + height: 2 at (2, 1)."""

    def __init__(self) -> None:
        self.calls: list[np.ndarray] = []

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        self.calls.append(point)
        return min(((float(slope @ point) + height, slope) for slope, height in PIECES), key=lambda item: item[0])


def rise(steps: int = 30, target: float = 1e9, high: float = 10.0, radius: float = 3.0) -> tuple[Counted, float, np.ndarray]:
    counted = Counted()
    value, where = ascend(counted, np.zeros(2), np.full(2, radius), np.full(2, -10.0), np.full(2, high), steps, target)
    return counted, value, where


def test_it_reaches_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpq.plan.ascent.HOPELESS", -1e9)
    counted, value, where = rise()
    assert value == pytest.approx(2.0, rel=1e-3)
    assert where[0] == pytest.approx(2.0, abs=0.01)
    assert len(counted.calls) < 15


def test_it_stays_within_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpq.plan.ascent.HOPELESS", -1e9)
    counted, value, _ = rise(high=1.0)
    assert value == pytest.approx(1.0)
    assert all((point <= 1.0 + 1e-9).all() for point in counted.calls)
    counted, _, _ = rise(radius=0.25, steps=2)
    assert np.abs(counted.calls[1]).max() <= 0.25 + 1e-9


def test_it_ends_once_the_target_is_reached_or_out_of_reach() -> None:
    assert len(rise(target=-1.0)[0].calls) == 1
    assert len(rise(target=1e9)[0].calls) == 1
    assert len(rise(steps=2, target=2.0)[0].calls) == 2
