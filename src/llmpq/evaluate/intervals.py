"""95 % confidence intervals: Student's for the mean of windows, Wilson's for a share of right answers."""

import math
from collections.abc import Sequence

CONFIDENCE = 0.95
_Z = 1.959963984540054  # quantile of the standard normal at (1 + CONFIDENCE) / 2


def student(values: Sequence[float]) -> tuple[float, float] | None:
    """Interval of the mean of independent ``values`` (n − 1 degrees of freedom); None of a single one, which says nothing of its spread."""
    from scipy.special import stdtrit

    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(spread / count)
    return mean - half, mean + half


def wilson(right: int, of: int) -> tuple[float, float]:
    """Interval of a share, ``right`` ``of`` independent questions (Wilson 1927): never outside 0 … 1, sound near both ends."""
    share, z2 = right / of, _Z**2
    centre = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    return max(0.0, centre - half), min(1.0, centre + half)
