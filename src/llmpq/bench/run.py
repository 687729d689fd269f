"""Which measurements are wanted, those that are stored already left out; each is stored as soon as it is there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.bench import cases, record, textbook
from llmpq.bench.planning import plan_case
from llmpq.bench.record import Record
from llmpq.sources import code_digest

NO_SOLVER = "none"
# What a measurement of each kind runs: a change there makes stored lines old.
CODE = {
    "plan": ("llmpq.plan.*",),
    "transfer": ("llmpq.plan.*",),
    "textbook": ("llmpq.plan.textbook", "llmpq.plan.solve", "llmpq.plan.orders"),
}
HEADER = f"{'case':20} {'mode':10} {'solver':6} {'draw':>4} {'s':>7} {'CPU s':>7} {'gap %':>8}  status"


@dataclass(frozen=True)
class Settings:
    """``time_limit_s`` None: the limit that the targets give (``cases.time_limit_s``; ``textbook.LIMIT_S``)."""

    kind: str
    rows: list[str]
    modes: list[str]
    solvers: list[str]
    generation: str = "2023"
    time_limit_s: float | None = None
    gap: float = 1e-3
    draws: int = 20
    seed: int = 0
    again: bool = False


def measure(config: Path, settings: Settings, results: Path) -> list[Record]:
    """Measure what is wanted and not stored yet, appending every result to ``results`` and printing it as soon as it is there."""
    stored = set() if settings.again else {line.settings for line in record.read(results)}
    here: dict[str, Any] = {"revision": record.revision(), "machine": record.machine()}
    found = []
    print(HEADER, flush=True)
    for body, known in _wanted(config, settings):
        if _settings_of(known) in stored:
            print(f"{_title(known)}  stored already", flush=True)
            continue
        before: dict[str, Any] = {"date": record.now(), "load": record.load()}
        measured = _measured(body, known, settings)
        if measured is not None:
            found.append(Record(**here, **before, **known, **measured))
            record.append(results, found[-1])
            print(line(found[-1]), flush=True)
    return found


def _wanted(config: Path, settings: Settings) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every problem with what is known of its measurement beforehand."""
    code = code_digest(*CODE[settings.kind])
    solvers = [NO_SOLVER] if settings.kind == "transfer" else settings.solvers
    draws: list[int | None] = list(range(settings.draws)) if settings.kind == "textbook" else [None]
    for row in settings.rows:
        for mode in settings.modes:
            body = cases.problem_of(config, row, settings.generation, mode)
            for solver in solvers:
                for draw in draws:
                    yield (
                        body,
                        {
                            "kind": settings.kind,
                            "code": code,
                            "generation": settings.generation,
                            "problem": artifacts.body_digest(body)[:16],
                            "time_limit_s": _limit(settings, row, solver),
                            "gap_requested": settings.gap,
                            "case": body["name"],
                            "mode": mode,
                            "solver": solver,
                            "seed": None if draw is None else settings.seed,
                            "draw": draw,
                        },
                    )


def _limit(settings: Settings, row: str, solver: str) -> float:
    if settings.time_limit_s is not None:
        return settings.time_limit_s
    return textbook.LIMIT_S if settings.kind == "textbook" else cases.time_limit_s(row, solver)


def _settings_of(known: dict[str, Any]) -> tuple[Any, ...]:
    names = ("kind", "case", "mode", "solver", "seed", "draw", "code", "problem", "time_limit_s", "gap_requested")
    return tuple(known[name] for name in names)


def _measured(body: dict[str, Any], known: dict[str, Any], settings: Settings) -> dict[str, Any] | None:
    solver, limit, gap = known["solver"], known["time_limit_s"], known["gap_requested"]
    if settings.kind == "textbook":
        return textbook.solve_drawn(body, solver, limit, gap, known["draw"], known["seed"])
    if settings.kind == "transfer":
        return plan_case(body, "llmpq-transfer", "highs", limit, gap)
    return plan_case(body, "llmpq", solver, limit, gap, order_gap=len(body["devices"]) >= 16)


def line(found: Record) -> str:
    """A result as a row of the printed table."""
    gap = "–" if found.gap is None else f"{100 * found.gap:.3f}"
    text = f"{_title(vars(found))} {found.seconds:7.1f} {found.cpu_seconds:7.1f} {gap:>8}  {found.status}"
    return text if found.counts is None else f"{text}; counts form {found.counts.seconds:.1f} s, {found.counts.status}"


def _title(known: dict[str, Any]) -> str:
    draw = "" if known["draw"] is None else known["draw"]
    return f"{known['case']:20} {known['mode']:10} {known['solver']:6} {draw:>4}"
