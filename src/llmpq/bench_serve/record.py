"""docs/bench-serve.jsonl: every measurement as one line, appended at once, so that a long bench can be run in several sittings."""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.bench import lines

PARTS = ("floor", "peers", "quality", "curves")
OK, SKIPPED = "ok", "skipped"


@dataclass(frozen=True)
class Case:
    """What is asked for: ``stages`` of ``threads`` each serve ``requests`` prompts, ``slots`` at once; sizes in tokens."""

    threads: int = 1
    stages: int = 1
    requests: int = 0
    slots: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True)
class Line:
    """One measurement: times in s, memory in bytes.

    ``part`` is one of PARTS, ``system`` who was measured: in ``peers`` and ``curves`` an engine or one of ours, in ``floor`` a kernel's
    option (``value`` operations per second) or ``bandwidth`` (``value`` bytes per second), in ``quality`` one of ours on the text ``what``
    (``value`` its perplexity). ``what`` names the curve in ``curves``. ``code`` is a digest of what was measured, ``load`` the machine's
    before the start, ``round`` the repetition. ``status`` is ok, or why there is no measurement. ``peaks`` are the peaks of our stages;
    ``same_tokens`` the share of tokens that ours at 16 bit chose too.
    """

    part: str
    date: str
    revision: str
    code: str
    machine: str
    load: float
    system: str
    what: str
    case: Case
    round: int
    status: str
    seconds: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    cpu_s: float | None = None
    load_s: float | None = None
    peaks: list[int] | None = None
    same_tokens: float | None = None
    value: float | None = None
    version: str | None = None

    @property
    def subject(self) -> tuple[Any, ...]:
        """What it is a repetition of."""
        return (self.part, self.system, self.what, self.case)

    @property
    def key(self) -> tuple[Any, ...]:
        """What would be measured again in vain: the same repetition of the same thing with the same code."""
        return (*self.subject, self.round, self.code)

    @property
    def measured(self) -> bool:
        return self.status == OK

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second of prefill and decode together."""
        return self.case.requests * self.case.new_tokens / (self.seconds or float("nan"))


def append(path: Path, line: Line) -> None:
    """Add one line: losing results too."""
    lines.append(path, line)


def read(path: Path) -> list[Line]:
    """All lines, oldest first; none where the file is missing. A line that is not a measurement is an error naming file and line."""
    return lines.read(path, _line)


def newest(records: Iterable[Line]) -> dict[tuple[Any, ...], list[Line]]:
    """The repetitions of everything measured, by subject: those with the code of the newest, the last of each round.

    Where nothing was measured with that code, the newest line, which says why.
    """
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in sorted(records, key=lambda line: line.date):
        groups.setdefault(line.subject, []).append(line)
    found = {}
    for subject, group in groups.items():
        rounds = {line.round: line for line in group if line.code == group[-1].code and line.measured}
        found[subject] = [rounds[number] for number in sorted(rounds)] or [group[-1]]
    return found


def _line(body: Any) -> Line:
    lines.check(body, Line)
    lines.check(body["case"], Case, "case.")
    if body["part"] not in PARTS:
        raise ValueError(f"key 'part' is '{body['part']}'; parts are {', '.join(PARTS)}")
    if body["status"] == OK and body.get("value") is None and body.get("seconds") is None:
        raise ValueError("key 'seconds' is missing")
    datetime.datetime.fromisoformat(body["date"])
    return Line(**{**body, "case": Case(**body["case"])})
