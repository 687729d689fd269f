"""Robust summaries of repeated timings, and a look at whether the machine was quiet meanwhile."""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from llmpq.errors import ConfigError

BUSY_FRACTION = 0.25  # of one core, used by others: above it timings are warned about


def summary_ms(seconds: Sequence[float]) -> dict[str, Any]:
    """{p10_ms, p50_ms, p90_ms, repeats} of timings in seconds."""
    low, middle, high = (float(value) * 1e3 for value in np.percentile(np.asarray(seconds), (10, 50, 90)))
    return {"p10_ms": round(low, 6), "p50_ms": round(middle, 6), "p90_ms": round(high, 6), "repeats": len(seconds)}


class QuietCheck:
    """Processor time that everything but this process used between construction and ``finish``, as a fraction of one core."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._system, self._own = _busy_seconds()

    def finish(self) -> dict[str, Any]:
        """{"busy_cores_elsewhere", "quiet"}; also counts what other processes took from cores that this one does not use."""
        system, own = _busy_seconds()
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        elsewhere = max(0.0, (system - self._system) - (own - self._own)) / elapsed
        return {"busy_cores_elsewhere": round(elsewhere, 3), "quiet": elsewhere <= BUSY_FRACTION}


def _busy_seconds() -> tuple[float, float]:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    own = psutil.Process().cpu_times()
    return sum(times[:8]) - idle, own.user + own.system


def quietest_cores(count: int, seconds: float = 0.5) -> tuple[int, ...]:
    """The ``count`` least busy cores that this process may use, watched for ``seconds``; ConfigError where there are not so many."""
    available = sorted(os.sched_getaffinity(0))
    if count > len(available):
        raise ConfigError(f"a device of {count} cores cannot be profiled here: this process may use cores {available}")
    if count == len(available):
        return tuple(available)
    busy = psutil.cpu_percent(interval=seconds, percpu=True)
    return tuple(sorted(sorted(available, key=lambda core: (busy[core] if core < len(busy) else 0.0, -core))[:count]))
