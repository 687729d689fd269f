"""What every script of the workflow does around its stage: log, progress line, marker of its state, and one line for an error.

A stage prints as it likes: both of its streams go to the job's log. The terminal gets a line at the start, at the end, and one when it
fails; between, now and then, the latest line of the log that counts something (``12/30 layers, 40 s left``).
"""

import contextlib
import io
import logging
import os
import platform
import re
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

from llmpq import heartbeat, session
from llmpq.errors import LlmpqError

PROGRESS_EVERY_S = 10.0
WATCH_EVERY_S = 2.0
_COUNT = re.compile(r"\b\d+ ?((/|of) ?\d+\b|%)")


@contextmanager
def job(snakemake: Any) -> Iterator[None]:
    """Run the block as one job of the workflow; ``snakemake`` is the object that Snakemake gives to a script."""
    wildcards = {str(key): str(value) for key, value in snakemake.wildcards.items()}
    rule, log = str(snakemake.rule), Path(str(snakemake.log[0]))
    started = time.time()
    number, total = session.next_number()
    title = f"{rule} {'/'.join(wildcards.values())}".strip()
    terminal = _redirect(log)
    _say(terminal, f"[{number:3d}/{total}] {title}")
    known = session.read_session()
    session.write_marker(rule, wildcards, state="running", started=started, log=str(log), pid=os.getpid(), session=known and known["id"])
    signal.signal(signal.SIGTERM, _terminated)
    threading.Thread(target=_watch, args=(known, log, title, terminal), daemon=True, name="watch").start()

    def ended(state: str, **fields: Any) -> None:
        session.write_marker(rule, wildcards, state=state, ended=time.time(), **fields)

    try:
        yield
    except LlmpqError as error:
        traceback.print_exc()
        ended("failed", error=str(error))
        _say(terminal, f"llmpq: error: {title}: {error}")
        sys.exit(1)
    except OSError as error:
        traceback.print_exc()
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else f"{type(error).__name__}: {error}"
        ended("failed", error=what)
        _say(terminal, f"llmpq: error: {title}: {what} (trace in {log})")
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code in (None, 0):
            ended("finished")
            raise
        ended("interrupted", error=f"stopped by {type(stop).__name__} {stop}".strip())
        _say(terminal, f"          {title}: interrupted")
        raise
    except BaseException as error:
        traceback.print_exc()
        ended("failed", error=f"{type(error).__name__}: {error}")
        _say(terminal, f"llmpq: error: {title}: {type(error).__name__}: {error} (a fault of llmpq itself; trace in {log})")
        sys.exit(1)
    ended("finished")
    _say(terminal, f"          {title}: done in {time.time() - started:.1f} s")


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # else what is said on one stream stands behind all of the other
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return terminal


def _terminated(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _watch(known: dict[str, Any] | None, log: Path, title: str, terminal: TextIO) -> None:
    """Show progress; end this job when the workflow that started it is gone (killed, so that it could not stop its jobs itself)."""
    here = known is not None and known["host"] == platform.node() and "ended" not in known
    if known is not None and not here and "ended" not in known:
        heartbeat.watch(session.HEARTBEAT.absolute(), _workflow_is_gone)
    shown, last = time.monotonic(), ""
    while True:
        time.sleep(WATCH_EVERY_S)
        if here and known is not None and not session.alive(known["pid"], known["began"]):
            _workflow_is_gone()
            return
        if time.monotonic() - shown >= PROGRESS_EVERY_S:
            shown, before, last = time.monotonic(), last, _progress_line(log)
            if last not in ("", before):
                _say(terminal, f"          {title}: {last}")


def _workflow_is_gone() -> None:
    print("the workflow that started this job is gone; stopping", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _progress_line(log: Path) -> str:
    """The last line of the log that counts something, or nothing."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if _COUNT.search(line)), "")


def _say(terminal: TextIO, text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone must not stop the work
        print(text, file=terminal, flush=True)
