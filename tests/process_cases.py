"""Processes of tests: all that one has started, waiting for something, and runs that heed SIGINT."""

import signal
import time
from typing import Any

import psutil


def heed_interrupts() -> None:
    """Tests that were started with ``&`` ignore SIGINT, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def processes(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def leave_nothing(pid: int) -> None:
    """Kill a process and all that it started."""
    for each in processes(pid):
        each.kill()


def wait_for(condition: Any, seconds: float, what: str) -> Any:
    """The first true value of ``condition()``; an error naming ``what`` when it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"waited {seconds} s for {what}")
