"""Emulated devices: a process pinned to its own cores, slowed down by sleeping in proportion to the work it really did.

A slow-down f makes a call last f times the processor time that the call used. The time slept is always derived from the time just
measured, never from a model, so that a profile taken under emulation and a serving run under emulation see the same device.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from llmpq.errors import ConfigError

MAX_SHARED_QUOTA = 0.9  # devices that share a core may together ask for this much of it; beyond, no speed is claimed


class EmulatedCall:
    """One timed call; after the block ``elapsed_s`` is its duration with the slow-down, ``cpu_s`` the processor time it used."""

    __slots__ = ("_slowdown", "_thread_start", "_use_thread_time", "cpu_s", "elapsed_s", "end_s", "start_s")

    def __init__(self, slowdown: float, use_thread_time: bool) -> None:
        self._slowdown = slowdown
        self._use_thread_time = use_thread_time
        self.start_s = self.end_s = self.elapsed_s = self.cpu_s = self._thread_start = 0.0

    def __enter__(self) -> "EmulatedCall":
        self.start_s = time.perf_counter()
        self._thread_start = time.thread_time()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        thread_s = time.thread_time() - self._thread_start
        wall_s = time.perf_counter() - self.start_s
        # With one core everything runs on this thread, whose own clock leaves out the time it was preempted. With several, the
        # threads of the pool work beside it and only the wall sees them.
        self.cpu_s = thread_s if self._use_thread_time else wall_s
        if self._slowdown > 1.0 and error is None:
            remaining = self._slowdown * self.cpu_s - (time.perf_counter() - self.start_s)
            if remaining > 0:
                time.sleep(remaining)
        self.end_s = time.perf_counter()
        self.elapsed_s = self.end_s - self.start_s


class Emulator:
    """A device made of some cores of this machine and a slow-down factor.

    ``slowdown`` ≥ 1 is the ratio of an emulated call's duration to the processor time it used; ``cores`` the core numbers the device
    owns (empty: whatever the process may use now, unpinned, at most ``threads`` of them where that is not 0). Construct it first thing in
    a process, before torch starts threads, and call ``pin()``; then wrap every model call in ``with emulator.call() as call:`` and read
    ``call.elapsed_s``.

    Raises ConfigError for a factor below 1 or a core that this machine does not have.
    """

    def __init__(self, slowdown: float = 1.0, cores: Sequence[int] = (), threads: int = 0) -> None:
        if not slowdown >= 1.0:
            raise ConfigError(f"slowdown is {slowdown}; an emulated device can only be slowed down (slowdown ≥ 1)")
        available = os.sched_getaffinity(0)
        missing = sorted(set(cores) - available)
        if missing:
            raise ConfigError(
                f"cores {missing} are not available here (this process may use {sorted(available)}); change the cluster's cores"
            )
        if len(set(cores)) != len(cores):
            raise ConfigError(f"cores {list(cores)} names a core twice")
        self.slowdown = float(slowdown)
        self.cores = tuple(cores)
        self.threads = len(cores) or min(threads or len(available), len(available))

    def pin(self) -> None:
        """Bind every thread of this process (and those it starts later) to the cores, and size torch's thread pool to them."""
        if self.cores:
            for thread in os.listdir("/proc/self/task"):
                try:
                    os.sched_setaffinity(int(thread), self.cores)
                except ProcessLookupError:  # a thread that ended while we listed them
                    continue
        import torch

        torch.set_num_threads(self.threads)

    def call(self) -> EmulatedCall:
        """A context manager around one call of the device; it returns after slowdown × the processor time used."""
        return EmulatedCall(self.slowdown, self.threads == 1)


def shared_core_quota(devices: Iterable[Mapping[str, object]]) -> dict[int, float]:
    """Cores on which emulated devices together ask for more than MAX_SHARED_QUOTA, with the sum of the quotas asked for.

    ``devices`` are mappings with ``cores`` (list of core numbers) and ``slowdown``; a device asks 1/slowdown of each of its cores. A
    core used by a single device may be asked for in full. An empty result means that measured speeds can be claimed.
    """
    quotas: dict[int, list[float]] = {}
    for device in devices:
        for core in device.get("cores") or ():  # type: ignore[attr-defined]
            quotas.setdefault(int(core), []).append(1.0 / float(device.get("slowdown") or 1.0))  # type: ignore[arg-type]
    return {core: sum(parts) for core, parts in quotas.items() if len(parts) > 1 and sum(parts) > MAX_SHARED_QUOTA}
