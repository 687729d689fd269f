"""Lines on stderr for steps that take minutes: what is done, how long it took, how long the rest will."""

import sys
import time

_INTERVAL_S = 5.0


class Progress:
    """``Progress("calibrate", 30)`` and a ``step(...)`` per finished part; at most a line in five seconds, and always the last one."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self._start = self._printed = time.monotonic()

    def step(self, what: str) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self._printed < _INTERVAL_S and self.done < self.total:
            return
        self._printed = now
        passed = now - self._start
        left = passed / self.done * (self.total - self.done)
        rest = f"{left:.0f} s left" if self.done < self.total else "done"
        print(f"{self.name}: {self.done}/{self.total} {what}, {passed:.0f} s, {rest}", file=sys.stderr, flush=True)
