"""Sampling: the probabilities are those of temperature and nucleus, and only seed and position decide a draw."""

import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from llmpq.model.sampling import draw, sample

LOGITS = np.log(np.array([0.02, 0.4, 0.08, 0.2, 0.05, 0.25], dtype=np.float32))
DRAWS = np.array([draw(3, position) for position in range(4000)])


def chosen(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """How often each token came up in 4,000 draws."""
    rows = len(DRAWS)
    ids = sample(np.tile(logits, (rows, 1)), np.full(rows, temperature), np.full(rows, top_p), DRAWS)
    return np.bincount(ids, minlength=len(logits))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_up_as_often_as_the_softmax_says(temperature: float) -> None:
    expected = np.exp(LOGITS.astype(np.float64) / temperature)
    counts = chosen(LOGITS, temperature, 1.0)
    assert chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 0.01


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [1]), (0.4, [1]), (0.41, [1, 5]), (0.65, [1, 5]), (0.7, [1, 3, 5]), (0.86, [1, 2, 3, 5]), (0.999, [0, 1, 2, 3, 4, 5])],
)
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(top_p: float, kept: list[int]) -> None:
    """Probabilities 0.4, 0.25, 0.2, 0.08, 0.05, 0.02 of tokens 1, 5, 3, 2, 4, 0."""
    counts = chosen(LOGITS, 1.0, top_p - 1e-6)  # the logits are rounded to fp32
    assert np.flatnonzero(counts).tolist() == kept
    if len(kept) > 1:
        expected = np.exp(LOGITS.astype(np.float64))[kept]
        assert chisquare(counts[kept], expected / expected.sum() * counts.sum()).pvalue > 0.01


def test_tokens_that_tie_with_the_last_of_the_nucleus_are_in_it() -> None:
    counts = chosen(np.zeros(5, dtype=np.float32), 1.0, 0.3)
    assert counts.min() > 700


def test_a_tiny_temperature_and_huge_logits_choose_the_likeliest_token() -> None:
    logits = np.array([[1e4, 3e4, 2.9e4], [-3e38, 3e38, 0.0]], dtype=np.float32)
    assert sample(logits, np.array([1e-9, 1e-9]), np.array([1.0, 0.9]), np.array([0.999999, 0.0])).tolist() == [1, 1]


def test_a_token_without_probability_is_never_chosen_at_either_end_of_the_draws() -> None:
    logits = np.array([[-np.inf, 0.0, -np.inf, 0.0, -np.inf]], dtype=np.float32)
    last = np.nextafter(1.0, 0.0)
    assert [int(sample(logits, np.ones(1), np.ones(1), np.array([draw])).item()) for draw in (0.0, last)] == [1, 3]


def test_rows_do_not_depend_on_their_neighbours() -> None:
    source = np.random.default_rng(0)
    logits = source.normal(size=(40, 300)).astype(np.float32)
    temperatures, top_ps, draws = source.uniform(0.2, 2, 40), np.where(np.arange(40) % 3, 0.8, 1.0), source.uniform(size=40)
    together = sample(logits, temperatures, top_ps, draws)
    alone = [int(sample(logits[i : i + 1], temperatures[i : i + 1], top_ps[i : i + 1], draws[i : i + 1]).item()) for i in range(40)]
    assert together.tolist() == alone


def test_draws_are_even_and_depend_on_seed_and_position_alone() -> None:
    assert draw(3, 17) == DRAWS[17]
    assert len({*DRAWS, *(draw(4, position) for position in range(100)), *(draw(-1, position) for position in range(100))}) == 4200
    assert kstest(DRAWS, "uniform").pvalue > 0.01
    assert kstest([draw(seed, 5) for seed in range(2000)], "uniform").pvalue > 0.01
    assert 0 <= DRAWS.min() < DRAWS.max() < 1


def test_the_stream_of_draws_is_fixed() -> None:
    """Results name their seeds: the same ones must give the same draws in every version."""
    assert [draw(0, 0), draw(1, 0), draw(2**63 - 1, 7)] == [0.011546754286331562, 0.3035680343067586, 0.3829293007184724]
