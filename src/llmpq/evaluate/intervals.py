"""95 % confidence intervals: Student's for the mean of windows, Wilson's for a share of right answers."""

import math
from collections.abc import Sequence

CONFIDENCE = 0.95
_NO_SPREAD = 1e-300  # of equal values: scipy gives no interval for a scale of 0


def student(values: Sequence[float]) -> tuple[float, float] | None:
    """Interval of the mean of independent ``values`` (n − 1 degrees of freedom); None of a single one, which says nothing of its spread."""
    from scipy import stats

    if len(values) < 2:
        return None
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=math.fsum(values) / len(values), scale=stats.sem(values) or _NO_SPREAD)
    return float(low), float(high)


def wilson(right: int, of: int) -> tuple[float, float]:
    """Interval of a share, ``right`` ``of`` independent questions (Wilson 1927): never outside 0 … 1, sound near both ends."""
    from scipy import stats

    found = stats.binomtest(right, of).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)
