"""Paired comparison of perplexities, against values worked out by hand and against scipy's own test."""

import math

import pytest
from scipy import stats

from llmpq.report.paired import compare_quality, paired_difference


def test_by_hand() -> None:
    found = paired_difference([1.0, 2.0, 3.0], [1.1, 2.2, 3.3])  # differences 0.1, 0.2, 0.3: mean 0.2, s = 0.1, t(2, 0.975) = 4.303
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found["mean"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert (found["verdict"], found["windows"]) == ("same", 3)


@pytest.mark.parametrize(("shift", "verdict"), [(0.05, "worse"), (-0.05, "better"), (0.0, "same")])
def test_the_verdict_is_that_of_a_paired_t_test(shift: float, verdict: str) -> None:
    focus = [3.1, 2.7, 2.9, 3.4, 2.5, 3.0, 2.8, 3.2]
    other = [value + shift + noise for value, noise in zip(focus, [0.01, -0.02, 0.015, 0.0, -0.005, 0.02, -0.01, -0.01], strict=True)]
    found = paired_difference(focus, other)
    assert found["verdict"] == verdict
    assert (stats.ttest_rel(focus, other).pvalue < 0.05) == (verdict != "same")


def test_pairing_sees_what_the_standard_errors_hide() -> None:
    """Windows between 2 and 4 nats, every one 1 % worse: far inside the standard error of either mean, yet certain."""
    focus = [2.0, 2.5, 3.0, 3.5, 4.0]
    assert paired_difference(focus, [1.01 * value for value in focus])["verdict"] == "worse"


def test_equal_weights_are_the_same() -> None:
    assert paired_difference([2.0, 3.0], [2.0, 3.0]) == {"mean": 0.0, "low": 0.0, "high": 0.0, "windows": 2, "verdict": "same"}


@pytest.mark.parametrize("other", [[1.0], [1.0, 2.0, 3.0]])
def test_windows_must_pair(other: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot pair"):
        paired_difference([1.0, 2.0], other)


def test_without_recorded_windows_there_is_no_comparison() -> None:
    recorded = {"texts": [{"text": "a", "nll_windows": [1.0, 2.0]}]}
    assert compare_quality(recorded, {"texts": [{"text": "a"}]}) == [None]
    assert compare_quality(recorded, recorded) != [None]
