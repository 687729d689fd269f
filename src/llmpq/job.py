"""What every script of the workflow does around its stage: log, progress line, marker of its state, and one line for an error.

A stage prints as it likes: both of its streams go to the job's log. The terminal gets a line at the start, at the end, now and then
between, and one line when it fails.
"""

import logging
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from llmpq import session
from llmpq.errors import LlmpqError

PROGRESS_EVERY_S = 10.0
WATCH_EVERY_S = 2.0


class Job:
    """One running job; ``progress`` may be called as often as a stage likes."""

    def __init__(self, rule: str, names: str, terminal: TextIO) -> None:
        self.title = f"{rule} {names}".strip()
        self._terminal = terminal
        self._shown = time.monotonic()

    def say(self, text: str) -> None:
        """One line on the terminal."""
        print(text, file=self._terminal, flush=True)

    def progress(self, text: str) -> None:
        """A line in the log, and on the terminal when none was shown for a while."""
        print(text, flush=True)
        if time.monotonic() - self._shown >= PROGRESS_EVERY_S:
            self._shown = time.monotonic()
            self.say(f"          {self.title}: {text}")


@contextmanager
def job(snakemake: Any) -> Iterator[Job]:
    """Run the block as one job of the workflow; ``snakemake`` is the object that Snakemake gives to a script."""
    wildcards = {str(key): str(value) for key, value in snakemake.wildcards.items()}
    rule, log = str(snakemake.rule), Path(str(snakemake.log[0]))
    started = time.time()
    number, total = session.next_number()
    current = Job(rule, "/".join(wildcards.values()), _redirect(log))
    current.say(f"[{number:3d}/{total}] {current.title}")
    known = session.read_session()
    session.write_marker(rule, wildcards, state="running", started=started, log=str(log), pid=os.getpid(), session=known and known["id"])
    signal.signal(signal.SIGTERM, _terminated)
    _watch(known)

    def ended(state: str, **fields: Any) -> None:
        session.write_marker(rule, wildcards, state=state, ended=time.time(), **fields)

    try:
        yield current
    except LlmpqError as error:
        traceback.print_exc()
        ended("failed", error=str(error))
        current.say(f"llmpq: error: {current.title}: {error}")
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code in (None, 0):
            ended("finished")
            raise
        ended("interrupted", error=f"stopped by {type(stop).__name__} {stop}")
        raise
    except BaseException as error:
        traceback.print_exc()
        ended("failed", error=f"{type(error).__name__}: {error}")
        current.say(f"llmpq: error: {current.title}: {type(error).__name__}: {error} (a fault of llmpq itself; trace in {log})")
        sys.exit(1)
    ended("finished")
    current.say(f"          {current.title}: done in {time.time() - started:.1f} s")


def _redirect(log: Path) -> TextIO:
    """Send both streams of this process, and of those it starts, to ``log``; returns the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return terminal


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _watch(known: dict[str, Any] | None) -> None:
    """End this job when the workflow that started it is gone (killed, so that it could not stop its jobs itself)."""
    if known is None or known["host"] != platform.node() or not _alive(known["pid"]):
        return

    def watch() -> None:
        while _alive(known["pid"]):
            time.sleep(WATCH_EVERY_S)
        print("the workflow that started this job is gone; stopping", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="watch-workflow").start()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
