"""docs/bench-faults.jsonl: every run with a fault, and every soak, as one line, appended at once."""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.bench import lines
from llmpq.bench_faults.faults import FAULTS

SOAK = "soak"
OK = "ok"


@dataclass(frozen=True)
class Life:
    """Memory of one process while it served: its own resident bytes (without shared pages), sampled over ``seconds``.

    ``slope`` is its growth in bytes per second, ``low`` to ``high`` the 95 % interval; None where it lived too short to tell.
    """

    process: str
    seconds: float
    mean_bytes: float
    slope: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One run. ``fault`` is one of FAULTS or SOAK; ``status`` ok, or what did not go as it should.

    ``code`` is a digest of what was run, ``load`` the machine's before the start. ``moments`` tell when each of the ``injected`` faults
    hit, ``reaction_s`` the longest time until the command acted on one; ``starts`` and ``restarts`` are of the command and by itself.
    ``near_ties`` are requests that left the undisturbed run at a near-tie. ``lives``: only of a soak.
    """

    date: str
    revision: str
    code: str
    machine: str
    load: float
    fault: str
    schedule: str
    seed: int
    status: str
    injected: int
    moments: list[str]
    requests: int
    lost: int
    duplicated: int
    wrong: int
    near_ties: int
    restarts: int
    starts: int
    seconds: float
    reaction_s: float | None = None
    lives: list[Life] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What would be run again in vain: the same fault with the same seed and code."""
        return (self.fault, self.schedule, self.seed, self.code)


def append(path: Path, line: Line) -> None:
    """Add one line: bad results too."""
    lines.append(path, line)


def read(path: Path) -> list[Line]:
    """All lines, oldest first; none where the file is missing. A line that is not one is an error naming file and line."""
    return lines.read(path, _line)


def newest(records: Iterable[Line]) -> list[Line]:
    """The last line of each fault, schedule and seed, of the newest code of its fault and schedule alone."""
    codes: dict[tuple[str, str], str] = {}
    found: dict[tuple[Any, ...], Line] = {}
    for line in sorted(records, key=lambda line: line.date):
        codes[line.fault, line.schedule] = line.code
        found[line.key] = line
    return [line for line in found.values() if line.code == codes[line.fault, line.schedule]]


def _line(body: Any) -> Line:
    lines.check(body, Line)
    if body["fault"] not in (*FAULTS, SOAK):
        raise ValueError(f"key 'fault' is '{body['fault']}'; known: {', '.join((*FAULTS, SOAK))}")
    datetime.datetime.fromisoformat(body["date"])
    lives = body.get("lives")
    if lives is not None:
        for life in lives:
            lines.check(life, Life, "lives.")
        body = {**body, "lives": [Life(**life) for life in lives]}
    return Line(**body)
