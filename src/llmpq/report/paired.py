"""Perplexities compared window by window.

All strategies read the same windows of a text. What makes a text hard is common to them and drops out of the differences, so a paired
comparison tells much smaller differences apart than the standard errors of the two perplexities would.
"""

import math
from collections.abc import Sequence
from typing import Any

CONFIDENCE = 0.95


def paired_difference(focus: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Mean difference other − focus of the windows' mean negative log-likelihoods (nats), its Student interval, and what it means.

    ``low`` and ``high`` bound the mean difference at 95 % confidence (n − 1 degrees of freedom); ``verdict`` is ``worse`` or ``better`` for
    ``other`` where the interval leaves out 0, ``same`` where it does not. At least two windows of equal number are needed (ValueError).
    """
    from scipy.special import stdtrit

    count = len(focus)
    if count != len(other) or count < 2:
        raise ValueError(f"cannot pair {count} windows with {len(other)}")
    differences = [b - a for a, b in zip(focus, other, strict=True)]
    mean = math.fsum(differences) / count
    spread = math.fsum((difference - mean) ** 2 for difference in differences) / (count - 1)
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(spread / count)
    low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "windows": count, "verdict": "worse" if low > 0 else "better" if high < 0 else "same"}


def compare_quality(focus: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Per text of two quality bodies the paired difference; None where the windows were not recorded."""
    found: list[dict[str, Any] | None] = []
    for a, b in zip(focus["texts"], other["texts"], strict=True):
        recorded = len(a.get("nll_windows", ())) > 1 and len(a["nll_windows"]) == len(b.get("nll_windows", ()))
        found.append(paired_difference(a["nll_windows"], b["nll_windows"]) if recorded and a["text"] == b["text"] else None)
    return found
