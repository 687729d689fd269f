"""docs/bench-backends.jsonl: every run of a plan by one of the backends as one line, appended at once."""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.bench import lines

BACKENDS = ("native", "vllm")


@dataclass(frozen=True)
class Line:
    """One run. ``plan`` says cut and options, ``plan_sha256`` which plan; ``load`` is the machine's before the start.

    ``cpu_s`` are processor seconds of all processes while the requests were served; ``predicted_s`` what the plan's problem says of the
    whole, for the backend that it was priced for.
    """

    date: str
    revision: str
    machine: str
    load: float
    round: int
    backend: str
    engine: str
    experiment: str
    plan: str
    plan_sha256: str
    requests: int
    prompt_tokens: int
    new_tokens: int
    tokens_per_s: float
    prefill_s: float
    decode_s: float
    total_s: float
    cpu_s: float
    load_s: float
    predicted_s: float | None = None


def append(path: Path, line: Line) -> None:
    """Add one line."""
    lines.append(path, line)


def read(path: Path) -> list[Line]:
    """All lines, oldest first; none where the file is missing. A line that is not one is an error naming file and line."""
    return lines.read(path, _line)


def newest(records: Iterable[Line]) -> list[Line]:
    """The lines of the newest sitting: same revision, machine and plan as the last one."""
    ordered = sorted(records, key=lambda line: line.date)
    last = ordered[-1:]
    return [line for line in ordered if last and _sitting(line) == _sitting(last[0])]


def _sitting(line: Line) -> tuple[str, ...]:
    return (line.revision, line.machine, line.plan_sha256)


def _line(body: Any) -> Line:
    lines.check(body, Line)
    if body["backend"] not in BACKENDS:
        raise ValueError(f"key 'backend' is '{body['backend']}'; known: {', '.join(BACKENDS)}")
    datetime.datetime.fromisoformat(body["date"])
    return Line(**body)
