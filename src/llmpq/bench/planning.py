"""How long planning takes: the paper's clusters from data sheets, both kinds of objective, both solvers; and clusters of any size.

Every case is planned in a process of its own, one at a time, so that processor time is its own and nothing is warm.
"""

import json
import multiprocessing
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmpq.bench.large import large_problem
from llmpq.cost.paper import paper_problem
from llmpq.errors import LlmpqError

ROWS = (*(f"paper-{number}" for number in range(3, 12)), "paper-1-lat", "paper-4-lat", "paper-6-lat")
# Milliseconds one would pay to avoid the damage of uniform 4 bit; batches of these rows take 10 to 400 s.
THETA_MS = 10_000.0
MODES: dict[str, dict[str, float]] = {
    "theta": {"theta_ms": THETA_MS},
    "budget 0.1": {"quality_budget": 0.1},
    "budget 0.5": {"quality_budget": 0.5},
    "budget 1": {"quality_budget": 1.0},
}


@dataclass(frozen=True)
class Result:
    """One planned case; times in s, ``gap`` relative and proven over the whole search.

    ``status``: optimal, feasible, or why there is no plan.
    """

    case: str
    mode: str
    solver: str
    status: str
    seconds: float
    cpu_seconds: float
    gap: float | None
    objective_ms: float | None
    enumerated: int
    pruned: int
    solved: int


def plan_case(body: Mapping[str, Any], mode: str, solver: str, time_limit_s: float, gap: float) -> Result:
    """Plan one problem in a fresh process and measure it."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_planned, args=(sender, dict(body), mode, solver, time_limit_s, gap))
    process.start()
    sender.close()
    try:
        return Result(**receiver.recv())
    except EOFError:
        raise LlmpqError(f"planning {body['name']} ({mode}, {solver}) ended without a result; run `llmpq plan` on it to see why") from None
    finally:
        process.join()


def _planned(sender: Any, body: dict[str, Any], mode: str, solver: str, time_limit_s: float, gap: float) -> None:
    import psutil

    from llmpq.plan.planner import plan

    started, own = time.monotonic(), psutil.Process()
    status, found = "", None
    try:
        found = plan(body, solver=solver, time_limit=time_limit_s, gap=gap)
    except LlmpqError as error:
        status = type(error).__name__.removesuffix("Error").lower() + ": " + str(error)[:120]
    times = own.cpu_times()
    certificate: dict[str, Any] = (
        found["certificate"] if found else {"status": status, "gap": None, "candidates": dict.fromkeys(_COUNTS, 0)}
    )
    result = Result(
        case=body["name"],
        mode=mode,
        solver=solver,
        status=certificate["status"],
        seconds=round(time.monotonic() - started, 2),
        cpu_seconds=round(times.user + times.system + times.children_user + times.children_system, 2),
        gap=certificate["gap"],
        objective_ms=found["objective_ms"] if found else None,
        **{name: certificate["candidates"][name] for name in _COUNTS},
    )
    sender.send(asdict(result))


_COUNTS = ("enumerated", "pruned", "solved")


def problem_of(config: Path, row: str, generation: str, mode: str) -> dict[str, Any]:
    """A row of config/paper.yaml, or LxN-T: L layers on N devices of T types (``large``)."""
    size = re.fullmatch(r"(\d+)x(\d+)-([1-4])", row)
    if size:
        layers, devices, kinds = map(int, size.groups())
        return large_problem(config, layers, devices, kinds, generation, MODES[mode])
    return paper_problem(config, row, generation, MODES[mode])[0]


HEADER = f"{'case':24} {'mode':10} {'solver':6} {'s':>7} {'CPU s':>7} {'gap %':>8} {'enumerated':>10} {'pruned':>7} {'solved':>6}  status"


def bench(
    config: Path,
    rows: list[str],
    modes: list[str],
    solvers: list[str],
    generation: str,
    time_limit_s: float,
    gap: float,
) -> list[Result]:
    """Plan every combination, printing a line as each is done."""
    results = []
    print(HEADER, flush=True)
    for row in rows:
        for mode in modes:
            body = problem_of(config, row, generation, mode)
            for solver in solvers:
                result = plan_case(body, mode, solver, time_limit_s, gap)
                results.append(result)
                print(line(result), flush=True)
    return results


def line(result: Result) -> str:
    """A result as a row of the printed table."""
    gap = "–" if result.gap is None else f"{100 * result.gap:.3f}"
    return (
        f"{result.case:24} {result.mode:10} {result.solver:6} {result.seconds:7.1f} {result.cpu_seconds:7.1f} {gap:>8} "
        f"{result.enumerated:10} {result.pruned:7} {result.solved:6}  {result.status}"
    )


def append_json(path: Path, results: list[Result]) -> None:
    """One JSON line per result: losing ones too."""
    with path.open("a", encoding="utf-8") as stream:
        for result in results:
            stream.write(json.dumps(asdict(result)) + "\n")
