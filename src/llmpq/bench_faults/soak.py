"""A long run with kills: thousands of requests in one command, every process's memory watched."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llmpq.bench_faults.faults import Trial
from llmpq.bench_faults.growth import Sampler
from llmpq.bench_faults.record import SOAK, Line
from llmpq.bench_faults.run import about, line_of
from llmpq.bench_faults.served import Command, Model, Reference, Served, request_rows

REQUESTS, SLOTS, LONGEST_ANSWER = 10_000, 16, 16
KILLS = 3
SPARE = 1.05  # the run is meant to last so much longer than asked for
HANGS_S = 3600.0  # beyond the time asked for


def soak(minutes: float, schedule: str, seed: int, work: Path, say: Callable[[str], None], requests: int = REQUESTS) -> Line:
    """Serve ``requests`` in one run of at least ``minutes``, killing a random stage in each third of it. Raises LlmpqError.

    The undisturbed run that they are held against goes at full speed; the device is then slowed down until the run lasts long enough.
    """
    before, draw = about(), random.Random(f"{SOAK} {schedule} {seed}")
    folder = work / f"{SOAK}-{schedule}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    rows = request_rows(seed, requests, LONGEST_ANSWER)
    quick = Served(folder / "undisturbed", Model.write(folder / "model"), rows, schedule, slots=SLOTS, slowdown=1.0)
    reference = Reference.take(quick, HANGS_S)
    busy = max(stage["cpu_s"] for stage in json.loads((quick.out / "out.serve.json").read_text(encoding="utf-8"))["stages"])
    slowdown = max(1.0, SPARE * 60 * minutes / busy)
    say(f"{SOAK}: {requests} requests take {busy:.0f} s of the busier stage; slowed down {slowdown:.1f} times")
    served = replace(quick, folder=folder / "killed", slowdown=slowdown, max_restarts=KILLS)
    trial = Trial(served, reference, draw)
    with trial.start() as command, Sampler(command) as sampler:
        started = time.monotonic()
        _kill_in_thirds(trial, command, 60 * minutes)
        trial.end(command, timeout_s=60 * minutes + HANGS_S)
        seconds = time.monotonic() - started
    trial.expect(seconds >= 60 * minutes, f"the run lasted {seconds / 60:.1f} minutes only")
    if not trial.complaints:
        shutil.rmtree(folder)
    return line_of(trial, {**before, "fault": SOAK, "schedule": schedule, "seed": seed}, seconds, lives=sampler.lives())


def _kill_in_thirds(trial: Trial, command: Command, seconds: float) -> None:
    started = time.monotonic()
    for number in range(KILLS):
        at = started + seconds * (number + trial.draw.random()) / KILLS
        while (time.monotonic() < at or not command.stages()) and not command.ended():
            time.sleep(0.2)
        if command.ended():
            return
        trial.draw.choice(command.stages()).send_signal(signal.SIGKILL)
        trial.hit(f"serving {trial.served.kept()}/{len(trial.served.rows)}")
