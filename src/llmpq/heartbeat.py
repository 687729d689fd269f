"""Processes that end when the one that started them is gone, also where no kernel and no process number is shared: through a file.

The one that is waited for writes a growing number; a process that has seen no change for ``SILENCE_S`` takes it for dead. Changes are
counted, not times compared, since hosts' clocks differ and a network file system may show a file late.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

BEAT_S = 5.0
SILENCE_S = 300.0  # many beats: a host so busy, or a file system so slow, is no reason to end; nor is a run that was stopped for a minute


class Heartbeat:
    """The beating side; ``beat`` may be called at any rate, ``start`` beats from a thread of its own until ``stop``."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._count = 0
        self._last = 0.0
        self._stopped = threading.Event()

    def beat(self) -> None:
        """Write the next number, unless the last one is younger than BEAT_S; a disk that refuses it is no reason to end."""
        now = time.monotonic()
        if self._count and now - self._last < BEAT_S:
            return
        self._count, self._last = self._count + 1, now
        with contextlib.suppress(OSError):
            self._path.write_text(f"{self._count}\n", encoding="ascii")

    def start(self) -> "Heartbeat":
        """Beat from now on."""
        self.beat()
        threading.Thread(target=self._keep_on, daemon=True, name="heartbeat").start()
        return self

    def stop(self) -> None:
        """No more beats."""
        self._stopped.set()

    def _keep_on(self) -> None:
        while not self._stopped.wait(BEAT_S):
            self.beat()


def watch(path: Path, gone: Callable[[], None], silence_s: float = SILENCE_S) -> None:
    """Call ``gone`` once, from a thread of its own, when ``path`` has not changed for ``silence_s`` seconds (or is not there)."""
    threading.Thread(target=_watch, args=(path, gone, silence_s), daemon=True, name="heartbeat-watch").start()


def _watch(path: Path, gone: Callable[[], None], silence_s: float) -> None:
    seen, since = b"", time.monotonic()
    while time.monotonic() - since < silence_s:
        time.sleep(min(BEAT_S, silence_s / 4))
        now = b""
        with contextlib.suppress(OSError):
            now = path.read_bytes()
        if now and now != seen:
            seen, since = now, time.monotonic()
    gone()
