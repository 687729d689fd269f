"""Robust summaries of repeated timings."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def summary_ms(seconds: Sequence[float]) -> dict[str, Any]:
    """{p10_ms, p50_ms, p90_ms, repeats} of timings in seconds."""
    low, middle, high = (float(value) * 1e3 for value in np.percentile(np.asarray(seconds), (10, 50, 90)))
    return {"p10_ms": round(low, 6), "p50_ms": round(middle, 6), "p90_ms": round(high, 6), "repeats": len(seconds)}
