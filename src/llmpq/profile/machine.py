"""The machine a profile is taken on: which cores, how busy, and what they are."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from llmpq.emulation import Emulator
from llmpq.errors import ConfigError

BUSY_FRACTION = 0.25  # of one core, used by others: above it timings are warned about


@contextmanager
def pinned(emulator: Emulator) -> Iterator[None]:
    """Pin this process to the emulated device's cores, and restore affinity and thread count afterwards."""
    affinity, threads = os.sched_getaffinity(0), torch.get_num_threads()
    emulator.pin()
    try:
        yield
    finally:
        for thread in os.listdir("/proc/self/task"):
            try:
                os.sched_setaffinity(int(thread), affinity)
            except ProcessLookupError:  # a thread that ended meanwhile
                continue
        torch.set_num_threads(threads)


class QuietCheck:
    """Processor time that everything but this process used between construction and ``finish``, as a fraction of one core."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._system, self._own = _busy_seconds()

    def finish(self, children_s: float = 0.0) -> dict[str, Any]:
        """{"busy_cores_elsewhere", "quiet"}; also counts what other processes took from cores that this one does not use.

        ``children_s`` are processor seconds of processes that this one has started."""
        system, own = _busy_seconds()
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        elsewhere = max(0.0, (system - self._system) - (own - self._own) - children_s) / elapsed
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


def identity(cores: Sequence[int]) -> dict[str, Any]:
    """What this machine's processor is, for the provenance of a profile."""
    found: dict[str, Any] = {
        "cores": list(cores),
        "torch_threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "cpu MHz", "cache size") and key.strip() not in found:
            found[key.strip()] = value.strip()
    return found
