"""Whether processes grow while they serve: their own resident bytes, sampled, and the slope of each with its interval."""

import contextlib
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import psutil
from scipy import stats

from llmpq.bench_faults.record import Life
from llmpq.bench_faults.served import Command

EVERY_S = 1.0
SETTLE_S = 60.0  # of a process's life that do not count: it loads and warms up
BLOCK_S = 10.0  # over which samples are averaged first, since neighbours are much alike
LEAST_BLOCKS = 12
CONFIDENCE = 0.95


def life(process: str, samples: Sequence[tuple[float, float]]) -> Life:
    """The growth of one process from its ``samples`` (s, bytes): least squares through block means, with the interval of Student's t."""
    start = samples[0][0]
    blocks: dict[int, list[float]] = {}
    for at, size in samples:
        if at - start >= SETTLE_S:
            blocks.setdefault(int((at - start) / BLOCK_S), []).append(size)
    seconds = samples[-1][0] - start
    if len(blocks) < LEAST_BLOCKS:
        return Life(process, round(seconds, 1), float(np.mean([size for _, size in samples])))
    means = [float(np.mean(sizes)) for sizes in blocks.values()]
    fit = stats.linregress([BLOCK_S * number for number in blocks], means)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(means) - 2) * fit.stderr)
    slope = float(fit.slope)
    return Life(process, round(seconds, 1), float(np.mean(means)), slope, slope - half, slope + half)


class Sampler:
    """Samples a command and all of its stages, as long as it is entered; ``lives()`` are theirs, in the order of their start."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._samples: dict[tuple[str, int], list[tuple[float, float]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def lives(self) -> list[Life]:
        """One for each process that was seen, stages numbered by their starts."""
        found, starts = [], dict[str, int]()
        for (name, _), samples in self._samples.items():
            starts[name] = starts.get(name, 0) + 1
            found.append(life(name if name == "command" else f"{name}, start {starts[name]}", samples))
        return found

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._take("command", psutil.Process(self._command.pid))
            for stage in self._command.stages():
                with contextlib.suppress(psutil.Error, IndexError):
                    self._take(f"stage {stage.cmdline()[-1]}", stage)

    def _take(self, name: str, process: psutil.Process) -> None:
        memory = process.memory_info()
        self._samples.setdefault((name, process.pid), []).append((time.monotonic(), memory.rss - memory.shared))

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
