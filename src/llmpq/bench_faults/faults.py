"""The faults, each really done to a run of its own, and what has to come of it beside whole results: FAULTS has them by name."""

import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from llmpq.bench_faults.disk import small_disk
from llmpq.bench_faults.served import DEADLINE_S, LOAD_TIMEOUT_S, STAGES, TIMEOUT_S, Command, Reference, Served
from llmpq.processes import HOST
from llmpq.serve.launch import GRACE_S, SLACK_S

WHILE_LOADING = 0.3  # share of faults that hit a run before it serves
LINGER_S = 0.5  # at most, once as many requests are finished as was drawn: a fault need not follow upon a result
MOST_KILLS = 3  # in one run
HEARD_S = 15.0  # within which the end of a process is acted on, however busy the machine
FAILED, STOPPED = 2, {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (128 + signal.SIGTERM, -signal.SIGTERM)}


@dataclass
class Trial:
    """One run and what was done to it.

    ``moments`` say when each fault hit (loading or serving, and how many requests were finished), ``reactions_s`` how long it took until
    the command said so or ended, ``complaints`` what did not go as it should, ``results`` the lines that were there in the end.
    """

    served: Served
    reference: Reference
    draw: random.Random
    injected: int = 0
    restarts: int = 0
    starts: int = 0
    moments: list[str] = field(default_factory=list)
    reactions_s: list[float] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> Command:
        self.starts += 1
        return self.served.start()

    def hit(self, moment: str) -> float:
        """A fault has been done; returns the time."""
        self.injected += 1
        self.moments.append(moment)
        return time.monotonic()

    def reacted(self, seconds: float, at_most: float) -> None:
        self.reactions_s.append(seconds)
        self.expect(seconds <= at_most, f"nothing happened for {seconds:.1f} s after the fault, at most {at_most:g} s are allowed")

    def expect(self, true: bool, complaint: str) -> None:
        if not true:
            self.complaints.append(complaint)

    def end(self, command: Command, codes: tuple[int, ...] = (0,), words: str = "", timeout_s: float = DEADLINE_S) -> None:
        """Wait for the command's end with one of ``codes``, having said ``words``, and leaving nothing behind."""
        code = command.wait(timeout_s)
        self.restarts += command.count("; restart ")
        self.expect(code is not None, "the command hangs")
        self.expect(code is None or code in codes, f"the command ended with status {code}: {command.text()[-600:]}")
        self.expect(words in command.text(), f"the command did not say '{words}': {command.text()[-600:]}")
        self.expect("Traceback" not in command.text(), f"the command broke: {command.text()[-600:]}")
        self.complaints += command.leftovers()
        self.results = self.served.results()

    def finish(self) -> None:
        """Start the command (again): it has to serve what is missing."""
        with self.start() as command:
            self.end(command)

    def moment(self, command: Command, generation: int) -> tuple[str, list[psutil.Process]] | None:
        """Wait for a random moment in the life of the stages that were started for the ``generation``-th time (from 0).

        Returns what it was and the stages, or None where the command ended before.
        """
        served, loading, wait = self.served, self.draw.random() < WHILE_LOADING, self.draw.random()
        while command.count("; restart ") < generation or len(command.stages()) < STAGES:
            if command.ended():
                return None
            time.sleep(0.05)
        before = command.count(" loaded in ")
        if loading:
            until = time.monotonic() + wait * self.reference.load_s
            while time.monotonic() < until and command.count(" loaded in ") < before + STAGES:
                time.sleep(0.02)
        else:
            wanted = self.draw.randint(served.kept(), len(served.rows) - 1)
            while (command.count(" loaded in ") < before + STAGES or served.kept() < wanted) and not command.ended():
                time.sleep(0.02)
            time.sleep(wait * LINGER_S)
        stages = command.stages()
        if command.ended() or not stages:
            return None
        phase = "serving" if command.count(" loaded in ") >= before + STAGES else "loading"
        return f"{phase} {served.kept()}/{len(served.rows)}", stages


def _hit_stages(trial: Trial, number: int, times: int, allowed: int, patience_s: dict[str, float]) -> Command:
    """Send ``number`` to a random stage up to ``times``, once for each of their starts; returns the command, still open."""
    trial.served.max_restarts = allowed
    command = trial.start()
    for generation in range(times):
        found = trial.moment(command, generation)
        if found is None:
            break
        moment, stages = found
        try:
            trial.draw.choice(stages).send_signal(number)
        except psutil.NoSuchProcess:
            break
        at = trial.hit(moment)
        while command.count("; restart ") <= generation and not command.ended():
            time.sleep(0.02)
            if time.monotonic() > at + max(patience_s.values()) + HEARD_S:
                break
        news = command.count(" loaded in ")  # a time-out counts from the last news
        since = max(at, command.time_of(" loaded in ", news)) if news else at
        trial.reacted(time.monotonic() - since, patience_s[moment.split()[0]])
    return command


_AT_ONCE = {"loading": HEARD_S + GRACE_S, "serving": HEARD_S + GRACE_S}
_AFTER_TIMEOUT = {"loading": LOAD_TIMEOUT_S + HEARD_S + GRACE_S, "serving": TIMEOUT_S + SLACK_S + HEARD_S + GRACE_S}


def kill_stages(trial: Trial) -> None:
    """Kill -9 a random stage at a random moment, up to three times in a run that may start again as often."""
    times = trial.draw.choice((1, 2, 3, 3))
    with _hit_stages(trial, signal.SIGKILL, times, times, _AT_ONCE) as command:
        trial.end(command)


def kill_too_often(trial: Trial) -> None:
    """Kill a stage once more than the run may start again: one clear failure, and the same command again serves the rest."""
    with _hit_stages(trial, signal.SIGKILL, 2, 1, _AT_ONCE) as command:
        if trial.injected == 2:
            trial.end(command, (FAILED,), "run the same command again to serve the missing ones")
        else:
            trial.end(command)
    trial.finish()


def hang_stage(trial: Trial) -> None:
    """Stop (SIGSTOP) a random stage at a random moment: the run has to notice within its time-out, and to start again."""
    with _hit_stages(trial, signal.SIGSTOP, 1, 1, _AFTER_TIMEOUT) as command:
        trial.end(command)


def _stop_command(trial: Trial, number: signal.Signals) -> None:
    for _ in range(trial.draw.randint(1, MOST_KILLS)):
        with trial.start() as command:
            found = trial.moment(command, 0)
            if found is None:
                break
            command.send(number)
            at = trial.hit(found[0])
            command.wait()
            trial.reacted(time.monotonic() - at, HEARD_S)
            trial.end(command, STOPPED[number])
    trial.finish()


def kill_command(trial: Trial) -> None:
    """Kill -9 the whole run, up to three times, and start it again."""
    _stop_command(trial, signal.SIGKILL)


def terminate_command(trial: Trial) -> None:
    """Stop the whole run with SIGTERM, up to three times, and start it again."""
    _stop_command(trial, signal.SIGTERM)


def fill_disk(trial: Trial) -> None:
    """The disk of the results is full at some point: one clear failure; once there is room, the same command goes on."""
    with small_disk(trial.served.out, trial.draw.randint(3, 10) << 12) as disk:
        with trial.start() as command:
            disk.limit(command.pid)
            trial.end(command, (FAILED,), disk.message)
        trial.hit(f"serving {trial.served.kept()}/{len(trial.served.rows)}")
        trial.expect(len(trial.results) in (0, len(trial.served.rows)), "the disk was full, and the results are not whole")
        disk.grow()
        trial.finish()


def poison_requests(trial: Trial) -> None:
    """Lines that cannot be served among the others: each is refused with its reason, all others are served."""
    long = list(range(3, 90)) * 2
    poison = [
        b'{"id": "too-long", "prompt_tokens": %s, "max_new_tokens": 4}' % str(long).encode(),
        b'{"id": "empty", "prompt_tokens": []}',
        b'{"id": "invalid", "prompt": "\xff\xfe"}',
        b'{"id": "out-of-range", "prompt_tokens": [5, 5000]}',
        b'{"id": "torn", "prompt_tokens": [5',
    ]
    codes = {"too_long": 1, "empty_prompt": 1, "invalid_utf8": 1, "token_out_of_range": 1, "invalid_json": 1}
    for line in poison:
        trial.served.lines.insert(trial.draw.randint(0, len(trial.served.lines)), line)
        trial.hit("before")
    with trial.start() as command:
        trial.end(command, words=f"{len(poison)} requests were refused")
    refused = [row["error"]["code"] for row in trial.results if "error" in row]
    trial.expect({code: refused.count(code) for code in refused} == codes, f"refused were {refused}")


def corrupt_layer(trial: Trial) -> None:
    """A layer file that is cut short or has one wrong byte: one clear failure that names it; mended, the same command serves."""
    path = trial.draw.choice(sorted(trial.served.model.layers.iterdir()))
    whole = path.read_bytes()
    place = trial.draw.randrange(len(whole))
    flipped = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
    damaged = whole[:place] if trial.draw.random() < 0.5 else flipped
    path.write_bytes(damaged)
    trial.hit("before")
    try:
        with trial.start() as command:
            trial.end(command, (FAILED,), path.name)
        trial.expect(not trial.results, "there are results although a layer was damaged")
    finally:
        path.write_bytes(whole)
    trial.finish()


def take_port(trial: Trial) -> None:
    """The port at which the stages are to meet is taken: one clear failure; once it is free, the same command serves."""
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        trial.served.port = other.getsockname()[1]
        trial.hit("before")
        with trial.start() as command:
            trial.end(command, (FAILED,), f"port {trial.served.port} on {HOST} is in use; choose another backend.port")
    trial.finish()


def cut_host(trial: Trial) -> None:
    """The link of a stage's host goes down at a random moment and is up again after some seconds: the run recovers by itself."""
    assert trial.served.network is not None
    host = trial.draw.choice(trial.served.network.hosts)
    trial.served.max_restarts = 3
    try:
        with trial.start() as command:
            if (found := trial.moment(command, 0)) is not None:
                host.cut()
                at = trial.hit(found[0])
                time.sleep(trial.draw.uniform(TIMEOUT_S + 1, 4 * TIMEOUT_S))
                host.join()
                joined = time.monotonic()
                trial.expect(command.count("; restart ") <= 3, "more restarts than allowed")
                while not command.count("; restart ") and not command.ended() and time.monotonic() < joined + LOAD_TIMEOUT_S:
                    time.sleep(0.02)
                if command.count("; restart "):
                    trial.reacted(command.time_of("; restart ", 1) - at, _AFTER_TIMEOUT[found[0].split()[0]])
            trial.end(command)
    finally:
        host.join()


FAULTS: dict[str, Callable[[Trial], None]] = {
    "stage killed": kill_stages,
    "stage killed too often": kill_too_often,
    "stage hangs": hang_stage,
    "run killed": kill_command,
    "run terminated": terminate_command,
    "disk full": fill_disk,
    "poisoned requests": poison_requests,
    "layer file corrupt": corrupt_layer,
    "port taken": take_port,
    "host cut off": cut_host,
}
KILLS = ("stage killed", "stage killed too often")
ON_HOSTS = ("host cut off",)
"""Faults that need network namespaces."""
