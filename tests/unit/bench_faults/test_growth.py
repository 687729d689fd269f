"""The slope of a process's memory: found with its interval, and not claimed for a life too short."""

import random

import pytest

from llmpq.bench_faults.growth import LEAST_BLOCKS, SETTLE_S, life

MIB = 2**20


def samples(seconds: int, growth: float, noise: float = 0.0) -> list[tuple[float, float]]:
    draw = random.Random(0)
    return [(1000.0 + at, 100 * MIB + growth * at + draw.gauss(0, noise)) for at in range(seconds)]


@pytest.mark.parametrize("growth", [0.0, 2000.0, -500.0])
def test_the_interval_holds_the_growth_and_no_other(growth: float) -> None:
    found = life("stage 0", samples(900, growth, noise=5000.0))
    assert found.low is not None
    assert found.high is not None
    assert found.low < growth < found.high
    assert found.high - found.low < 100
    assert found.mean_bytes == pytest.approx(100 * MIB + growth * 480, rel=1e-3)


def test_growth_while_it_settles_does_not_count() -> None:
    rows = [(at, size + (0 if at - 1000 >= SETTLE_S else (at - 1000) * MIB)) for at, size in samples(900, 0.0)]
    assert life("stage 0", rows).slope == pytest.approx(0.0, abs=1e-6)


def test_a_short_life_has_no_slope() -> None:
    short = int(SETTLE_S + 10 * (LEAST_BLOCKS - 1))
    assert life("stage 0", samples(short, 0.0)).slope is None
    assert life("stage 0", samples(short + 1, 0.0)).slope is not None
    assert life("stage 0", samples(1, 0.0)).seconds == 0
