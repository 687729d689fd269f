"""The textbook form beside the counts form, on candidates drawn at random: what a search without bounds would cost."""

import random
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llmpq.bench.isolated import Stopwatch, in_fresh_process
from llmpq.bench.record import Form, finite
from llmpq.plan.candidate import Candidate, build
from llmpq.plan.milp import build_model
from llmpq.plan.orders import device_orders
from llmpq.plan.problem import Problem
from llmpq.plan.solve import SolverError, solve, solver_version
from llmpq.plan.textbook import build_textbook_model

LIMIT_S = 60.0
FORMS = {"textbook": build_textbook_model, "counts": build_model}


def drawn(problem: Problem, draw: int, seed: int) -> tuple[Candidate, int]:
    """The candidate number ``draw`` of a random sequence without repetition, and how many candidates there are.

    The sequence depends on ``seed`` alone, so the first three of twenty are those of three. IndexError beyond the last.
    """
    orders = list(device_orders(problem))
    count = len(orders) * len(problem.micro_batches)
    number = random.Random(seed).sample(range(count), count)[draw]
    order, batches = divmod(number, len(problem.micro_batches))
    return build(problem, orders[order], problem.micro_batches[batches]), count


def solve_drawn(body: Mapping[str, Any], solver: str, time_limit_s: float, gap: float, draw: int, seed: int) -> dict[str, Any] | None:
    """Solve one drawn candidate in both forms, nothing known beforehand, in a fresh process: the measured fields of a Record.

    Seconds are those of building and solving, ``time_limit_s`` is the solver's. None where fewer candidates exist.
    """
    name = f"candidate {draw} of {body['name']} ({solver})"
    found: dict[str, Any] | None = in_fresh_process(name, _both, dict(body), solver, time_limit_s, gap, draw, seed)
    return None if found is None else {**found, "counts": Form(**found["counts"])}


def _both(body: dict[str, Any], solver: str, time_limit_s: float, gap: float, draw: int, seed: int) -> dict[str, Any] | None:
    problem = Problem.from_document(body)
    try:
        candidate, count = drawn(problem, draw, seed)
    except IndexError:
        return None
    _warm(solver)
    textbook, counts = (one_form(form, problem, candidate, solver, time_limit_s, gap) for form in ("textbook", "counts"))
    gap_left = None
    if textbook.objective_ms and textbook.bound_ms is not None:
        gap_left = max(textbook.objective_ms - textbook.bound_ms, 0.0) / textbook.objective_ms
    return {**asdict(textbook), "gap": gap_left, "enumerated": count, "pruned": 0, "solved": 1, "counts": asdict(counts)}


def one_form(form: str, problem: Problem, candidate: Candidate, solver: str, time_limit_s: float, gap: float) -> Form:
    """Build and solve one candidate's program in one of FORMS."""
    watch = Stopwatch()
    model = FORMS[form](problem, candidate)
    try:
        solution = solve(model, solver, time_limit_s=time_limit_s, gap=gap)
    except SolverError as error:
        return Form(f"failed: {str(error)[:120]}", watch.seconds, watch.cpu_seconds, None, None)
    return Form(solution.status, watch.seconds, watch.cpu_seconds, solution.objective, finite(solution.bound))


def _warm(solver: str) -> None:
    """Import what the first program would otherwise pay for."""
    solver_version(solver)
    if solver == "highs":
        import highspy  # noqa: F401
        import pyomo.contrib.appsi.solvers.highs  # noqa: F401


def extrapolated_s(seconds: list[float], candidates: int) -> float:
    """Seconds of one program per candidate: the mean of those drawn times their number."""
    return sum(seconds) / len(seconds) * candidates
