"""Every measurement in a process of its own, one at a time, so that processor time is its own and nothing is warm."""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

from llmpq.errors import LlmpqError


def in_fresh_process(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` (of a module, with arguments that can be pickled) returns there; LlmpqError naming ``what`` where it died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise LlmpqError(f"{what} ended without a result; its own messages are above") from None
    finally:
        process.join()


def _run(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))


class Stopwatch:
    """Seconds and processor seconds (children included) since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.monotonic(), _processor_s()

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._wall, 3)

    @property
    def cpu_seconds(self) -> float:
        return round(_processor_s() - self._processor, 3)


def _processor_s() -> float:
    import psutil

    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
