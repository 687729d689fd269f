"""Which faults are wanted, runs that are stored already left out; each run is stored as soon as it has ended."""

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpq.bench.record import load, machine, now, revision
from llmpq.bench_faults import record
from llmpq.bench_faults.faults import FAULTS, ON_HOSTS, Trial
from llmpq.bench_faults.hosts import HostsMissingError, Network, network
from llmpq.bench_faults.record import OK, Line
from llmpq.bench_faults.served import STAGES, Model, Reference, Served, request_rows
from llmpq.bench_faults.verdict import judge
from llmpq.sources import code_digest

CODE = ("llmpq.serve.worker", "llmpq.serve.batch", "llmpq.bench_faults.faults")
SCHEDULES = ("barrier", "continuous")
SEEDS = {"stage killed": 24, "stage hangs": 4, "run killed": 4, "run terminated": 4}
"""Runs of each fault and schedule."""
OTHER_SEEDS = 3
REQUEST_SETS = 2  # files of requests that the runs take in turn


@dataclass(frozen=True)
class Settings:
    """Which faults under which schedules, how many runs of each (None: SEEDS), and where things go."""

    results: Path
    faults: Sequence[str] = tuple(FAULTS)
    schedules: Sequence[str] = SCHEDULES
    runs: int | None = None
    work: Path = Path("build/bench-faults")
    again: bool = False


@dataclass
class Bench:
    """Runs with faults, one after the other; every line goes to ``settings.results`` at once, and to whoever watches."""

    settings: Settings
    say: Callable[[str], None] = print
    _references: dict[tuple[str, int], Reference] = field(default_factory=dict)

    def run(self) -> list[Line]:
        """All that is wanted and not stored yet; returns the new lines."""
        settings, found = self.settings, []
        code = code_digest(*CODE)
        stored = set() if settings.again else {line.key for line in record.read(settings.results) if line.status == OK}
        for fault in settings.faults:
            for schedule in settings.schedules:
                for seed in range(SEEDS.get(fault, OTHER_SEEDS) if settings.runs is None else settings.runs):
                    if (fault, schedule, seed, code) in stored:
                        continue
                    try:
                        line = self.once(fault, schedule, seed)
                    except HostsMissingError as error:
                        self.say(f"{fault}: skipped, {error}")
                        break
                    record.append(settings.results, line)
                    found.append(line)
                    self.say(shown(line))
        return found

    def once(self, fault: str, schedule: str, seed: int) -> Line:
        """One run with one fault. Raises HostsMissingError for a fault that needs several hosts where there can be none."""
        before = about()
        with contextlib.ExitStack() as stack:
            hosts = stack.enter_context(network(STAGES)) if fault in ON_HOSTS else None
            reference = self._reference(schedule, seed % REQUEST_SETS)
            served = self._served(f"{fault.replace(' ', '-')}-{schedule}-{seed}", schedule, seed % REQUEST_SETS, hosts)
            trial = Trial(served, reference, random.Random(f"{fault} {schedule} {seed}"))
            started = time.monotonic()
            FAULTS[fault](trial)
        if trial.complaints:
            self.say(f"{served.folder} is kept: {'; '.join(trial.complaints)}")
        else:
            shutil.rmtree(served.folder)
        reaction = round(max(trial.reactions_s), 2) if trial.reactions_s else None
        return line_of(
            trial, {**before, "fault": fault, "schedule": schedule, "seed": seed}, time.monotonic() - started, reaction_s=reaction
        )

    def _reference(self, schedule: str, requests: int) -> Reference:
        """The undisturbed run, taken once."""
        key = (schedule, requests)
        if key not in self._references:
            self._references[key] = Reference.take(self._served(f"undisturbed-{schedule}-{requests}", schedule, requests, None))
        return self._references[key]

    def _served(self, name: str, schedule: str, requests: int, hosts: Network | None) -> Served:
        folder = self.settings.work / name
        shutil.rmtree(folder, ignore_errors=True)
        return Served(folder, Model.write(folder / "model"), request_rows(requests), schedule, network=hosts)


def about() -> dict[str, Any]:
    """What each line says of where and when it was taken."""
    parts = ("serve", "model", "quant", "bench_faults")
    return {"date": now(), "revision": revision(*parts), "code": code_digest(*CODE), "machine": machine(), "load": load()}


def line_of(trial: Trial, labels: Mapping[str, Any], seconds: float, **more: Any) -> Line:
    """What became of ``trial`` in ``seconds``; ``labels`` say which it was, ``more`` are further fields of the line."""
    reference = trial.reference
    return Line(
        **labels,
        status="; ".join(trial.complaints)[:1000] or OK,
        injected=trial.injected,
        moments=trial.moments,
        **vars(judge(trial.results, reference.tokens, reference.margins)),
        restarts=trial.restarts,
        starts=trial.starts,
        seconds=round(seconds, 1),
        **more,
    )


def shown(line: Line) -> str:
    """A line as the bench prints it."""
    ends = f"{line.lost} lost, {line.duplicated} twice, {line.wrong} wrong of {line.requests}"
    title = f"{line.fault:24} {line.schedule:10} {line.seed:3}  {line.injected} injected ({', '.join(line.moments)})"
    return f"{title}; {ends}; {line.restarts} restarts, {line.seconds:.0f} s  {line.status}"
