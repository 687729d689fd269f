"""docs/bench-plan.jsonl: every measurement as one line, appended at once, so that a long bench can be run in several sittings."""

import datetime
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.bench import lines

KINDS = ("plan", "textbook", "transfer")


@dataclass(frozen=True)
class Form:
    """One program solved whole: seconds of building and solving it, and what came out."""

    status: str
    seconds: float
    cpu_seconds: float
    objective_ms: float | None
    bound_ms: float | None


@dataclass(frozen=True)
class Record:
    """One measurement; times in s, ``gap`` relative.

    ``kind``: plan (the search), transfer (llmpq-transfer) or textbook (one drawn candidate's program). ``code`` is a digest of the
    planner's sources, ``problem`` one of problem.json's body, ``load`` the machine's before the start. ``status``: optimal, feasible,
    heuristic, or why there is no plan. Of a textbook line ``draw`` numbers the candidates drawn with ``seed`` among ``enumerated``, and
    ``counts`` is the counts form of the same candidate. ``order_gap`` is the gap to a bound of the chosen order and micro-batches alone.
    """

    kind: str
    date: str
    revision: str
    code: str
    machine: str
    load: float
    generation: str
    problem: str
    time_limit_s: float
    gap_requested: float
    case: str
    mode: str
    solver: str
    status: str
    seconds: float
    cpu_seconds: float
    gap: float | None
    objective_ms: float | None
    bound_ms: float | None
    enumerated: int
    pruned: int
    solved: int
    order_gap: float | None = None
    seed: int | None = None
    draw: int | None = None
    counts: Form | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What it is a measurement of: the newest line of each is shown."""
        return (self.kind, self.case, self.mode, self.solver, self.seed, self.draw)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What would be measured again in vain: the same thing, the same planner, problem and limits."""
        return (*self.key, self.code, self.problem, self.time_limit_s, self.gap_requested)


def append(path: Path, record: Record) -> None:
    """Add one line: losing results too."""
    lines.append(path, record)


def read(path: Path) -> list[Record]:
    """All lines, oldest first; none where the file is missing. A line that is not a measurement is an error naming file and line."""
    return lines.read(path, _record)


def newest(records: Iterable[Record]) -> list[Record]:
    """The last line of everything measured, in the order of first appearance."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in records:
        older = found.get(record.key)
        if older is None or record.date >= older.date:
            found[record.key] = record
    return list(found.values())


def finite(value: float | None) -> float | None:
    """JSON has no infinity: a bound that says nothing is null."""
    return value if value is not None and math.isfinite(value) else None


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> str:
    """Processor and its cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"


def load() -> float:
    """How many processes wanted to run, on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def revision(*measured: str) -> str:
    """The git revision, ``-dirty`` where what is ``measured`` or measures was changed since: parts of the package (the planner's)."""
    here = Path(__file__).parents[1]
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        return head + ("-dirty" if _git(here, "status", "--porcelain", "--", *(measured or ("plan", "cost", "bench"))) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _record(body: Any) -> Record:
    lines.check(body, Record)
    if body["kind"] not in KINDS:
        raise ValueError(f"key 'kind' is '{body['kind']}'; kinds are {', '.join(KINDS)}")
    datetime.datetime.fromisoformat(body["date"])
    if isinstance(body.get("counts"), dict):
        lines.check(body["counts"], Form, "counts.")
        body = {**body, "counts": Form(**body["counts"])}
    return Record(**body)
