"""Rank correlation with its interval, and differences between two models window by window."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation, ties ranked in the mean; 0 where one side is constant."""
    ranks = np.array([rankdata(x), rankdata(y)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    sizes = np.sqrt((centred**2).sum(axis=1))
    return 0.0 if not sizes.all() else float(centred[0] @ centred[1] / sizes.prod())


def spearman_interval(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Interval:
    """Spearman's correlation of the pairs (x, y), the interval by drawing pairs again."""
    draw, pairs = np.random.default_rng(seed), np.array([x, y])
    again = [spearman(*pairs[:, draw.integers(0, pairs.shape[1], pairs.shape[1])]) for _ in range(RESAMPLES)]
    low, high = np.percentile(again, [2.5, 97.5])
    return Interval(spearman(x, y), float(low), float(high))


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Mean of first − second over windows that both were measured on, the interval by drawing windows again (paired bootstrap)."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} windows beside {len(second)}: a paired comparison needs the same ones")
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    draw = np.random.default_rng(seed)
    again = differences[draw.integers(0, len(differences), (RESAMPLES, len(differences)))].mean(axis=1)
    low, high = np.percentile(again, [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high))
