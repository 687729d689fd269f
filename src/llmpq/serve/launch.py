"""Start the processes of all stages, watch them, and let none of them outlive a failure.

Each stage is a process in a group of its own with a log file and an event pipe. The launcher wakes up on events, on the end of a process
(pidfd) and on signals; whatever goes wrong, it says which stage was at fault, with the end of its log, and kills the rest.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llmpq.errors import ServeError
from llmpq.processes import heed_signal, listener, signals
from llmpq.serve.events import EventReader
from llmpq.serve.faults import Stage, cause, fault, silence

GRACE_S = 1.0  # after a first failure, for the others to fail too, so that the cause can be told from its consequences
SLACK_S = 10.0  # beyond the stages' own time-out, which knows better who is silent

OnEvent = Callable[[int, Mapping[str, Any]], None]


@dataclass(kw_only=True)
class StageProcess(Stage):
    """One running stage: its process, and the pipe on which it says how it goes."""

    process: "subprocess.Popen[bytes]"
    events: EventReader
    pidfd: int = -1


def run_stages(
    jobs: Sequence[dict[str, Any]], log_dir: Path, *, port: int, load_timeout_s: float, timeout_s: float, on_event: OnEvent
) -> list[dict]:
    """Run one process per job until all are done; returns their ``done`` events by rank. They meet at ``port`` of the jobs' ``host``.

    ``on_event(rank, event)`` is called for every other event. Raises ServeError naming the stage at fault, with the tail of its log, when
    a stage dies, fails, or nothing happens for too long (StageLostError where starting again may help). A SIGINT becomes KeyboardInterrupt,
    a SIGTERM SystemExit(143). No process is left in any case.
    """
    with signals() as wake, listener(port, ServeError, "backend.port", jobs[0]["host"]) as rendezvous:
        group = _Group(on_event)
        try:
            for job in jobs:
                try:
                    group.start(job, rendezvous, log_dir)
                except OSError as error:
                    raise ServeError(f"{job['title']}: its process could not be started: {error}") from None
            return group.watch(wake, load_timeout_s, timeout_s)
        finally:
            group.kill()


class _Group:
    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._stages: list[StageProcess] = []
        self._selector = selectors.DefaultSelector()
        self._serving = False

    def start(self, job: dict[str, Any], rendezvous: socket.socket, log_dir: Path) -> None:
        rank = job["rank"]
        log_dir.mkdir(parents=True, exist_ok=True)
        log = log_dir / f"stage-{rank}.log"
        read_end, write_end = os.pipe()
        shared = [write_end] + ([rendezvous.fileno()] if rank == 0 else [])
        message = {**job, "port": rendezvous.getsockname()[1], "listener": rendezvous.fileno()}
        threads = str(max(1, len(job["cores"])))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
        }
        command = [*job["prefix"], sys.executable, "-m", "llmpq.serve.worker", str(os.getpid()), str(write_end), str(rank)]
        with log.open("wb") as output, os.fdopen(_in_memory(json.dumps(message).encode()), "rb") as stdin:
            process = subprocess.Popen(
                command, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, env=environment, pass_fds=shared, start_new_session=True
            )
        os.close(write_end)
        stage = StageProcess(rank, job["title"], log, process=process, events=EventReader(read_end))
        self._stages.append(stage)  # before anything else can fail: kill() ends what is here
        stage.pidfd = os.pidfd_open(process.pid)
        self._selector.register(stage.events.descriptor, selectors.EVENT_READ, stage)
        self._selector.register(stage.pidfd, selectors.EVENT_READ, stage)

    def watch(self, wake: int, load_timeout_s: float, timeout_s: float) -> list[dict]:
        self._selector.register(wake, selectors.EVENT_READ, None)
        heard = time.monotonic()
        while not all(stage.ended for stage in self._stages):
            patience = timeout_s + SLACK_S if self._serving else load_timeout_s
            ready = self._selector.select(max(0.0, heard + patience - time.monotonic()))
            if not ready:
                raise silence(self._stages, patience)
            for key, _ in ready:
                if key.data is None:
                    heed_signal(wake)
                heard = time.monotonic() if self._take(key.data) else heard
            if any(stage.failed for stage in self._stages):
                self._raise_failure(wake)
        return [stage.done or {} for stage in self._stages]

    def _take(self, stage: StageProcess) -> bool:
        """Handle what a stage has sent, and its end; returns whether it sent anything."""
        if stage.ended:
            return False
        code = stage.process.poll()  # before reading: what a dead process wrote is all there
        count = 0
        for event in stage.events.read():
            count += 1
            if not stage.last_word(event):
                self._serving = self._serving or event["event"] == "warm"
                self._on_event(stage.rank, event)
        if code is not None:
            stage.ended = True
            self._selector.unregister(stage.events.descriptor)
            self._selector.unregister(stage.pidfd)
            if stage.failed is None and (code != 0 or stage.done is None):
                stage.failed = {"message": _death(code), "expected": False, "blames": None}
        return count > 0

    def _raise_failure(self, wake: int) -> NoReturn:
        until = time.monotonic() + GRACE_S
        while not cause(self._stages, certain=True) and time.monotonic() < until:
            for key, _ in self._selector.select(max(0.0, until - time.monotonic())):
                if key.data is None:
                    heed_signal(wake)
                self._take(key.data)
        raise fault(self._stages)

    def kill(self) -> None:
        for stage in self._stages:
            if stage.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(stage.process.pid, signal.SIGKILL)
        for stage in self._stages:
            stage.process.wait()
            for event in stage.events.read():  # requests that finished before the failure was seen
                if event["event"] == "finished":
                    with contextlib.suppress(ServeError):  # the failure under way is the one to report
                        self._on_event(stage.rank, event)
            stage.events.close()
            if stage.pidfd >= 0:
                os.close(stage.pidfd)
        self._selector.close()
        self._stages = []


def _death(code: int) -> str:
    if code >= 0:
        return f"the process ended with status {code}"
    name = signal.Signals(-code).name
    return f"the process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _in_memory(data: bytes) -> int:
    """A descriptor of an anonymous file holding ``data``: a job of any size without a blocking pipe or a file to clean up."""
    descriptor = os.memfd_create("llmpq-job")
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
