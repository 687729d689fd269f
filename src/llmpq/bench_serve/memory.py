"""Peak memory of processes while they work: the kernel's own high-water mark, set back once they are loaded."""

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import psutil

EVERY_S = 0.1
_RESIDENT_PEAK = "5"  # what clear_refs takes to set VmHWM back to the present size (Linux, proc(5))


def forget_peak(pid: int) -> None:
    """From now on the peak of process ``pid`` is that of what follows."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text(_RESIDENT_PEAK, encoding="ascii")


def peak_bytes(pid: int) -> int:
    """Largest resident set of process ``pid`` since its start or ``forget_peak``; 0 when it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0


def family(pid: int) -> list[psutil.Process]:
    """Process ``pid`` and everything below it, as far as it still runs."""
    try:
        own = psutil.Process(pid)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Processor seconds they have used, threads included."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class StagePeaks:
    """Watches the stages of a serving run started by this process: ``bytes`` by rank, of what they do after ``loaded``.

    Stages end by themselves, so their marks are read every EVERY_S; growth in the last moment of a run may be missed.
    """

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def loaded(self) -> None:
        """Look for the stages, and forget what loading took."""
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                command = process.cmdline()
                if "llmpq.serve.worker" in command:
                    rank = int(command[-1])
                    forget_peak(process.pid)
                    self.bytes[rank] = peak_bytes(process.pid)  # a run may be over before the next look
                    self._pids[rank] = process.pid

    def __enter__(self) -> "StagePeaks":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            for rank, pid in list(self._pids.items()):
                self.bytes[rank] = max(self.bytes.get(rank, 0), peak_bytes(pid))
