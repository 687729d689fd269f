"""Lines for steps that take minutes: what is done, how long it took, how long the rest will."""

import sys
import time
from collections.abc import Callable

_INTERVAL_S = 5.0


def time_left(passed_s: float, done: float, total: float) -> str:
    """``40 s left`` at the pace so far, of ``done`` (more than 0) out of ``total`` in ``passed_s`` seconds; ``done`` at the end."""
    return f"{passed_s * (total / done - 1):.0f} s left" if done < total else "done"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Progress:
    """``Progress("calibrate", 30)`` and a ``step(...)`` per finished part; at most a line in five seconds, and always the last one."""

    def __init__(self, name: str, total: int, say: Callable[[str], None] = _to_stderr) -> None:
        self.name, self.total, self.done, self._say = name, total, 0, say
        self._start = self._printed = time.monotonic()

    def step(self, what: str) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self._printed < _INTERVAL_S and self.done < self.total:
            return
        self._printed = now
        passed = now - self._start
        self._say(f"{self.name}: {self.done}/{self.total} {what}, {passed:.0f} s, {time_left(passed, self.done, self.total)}")
