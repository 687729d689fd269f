"""The front of batch time and quality: the fastest plan for a series of quality budgets, each with its certificate.

The quality budget is swept from the least damage that fits in memory to that of the fastest plan of all. A plan for one budget is
allowed under every larger one, so each search starts from the plans of all smaller ones. Optionally the same with all memory scaled.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmpq import artifacts
from llmpq.errors import ConfigError, InfeasibleError
from llmpq.plan.candidate import Assignment
from llmpq.plan.known import assignment_of
from llmpq.plan.least_omega import LeastOmega
from llmpq.plan.planner import plan_from
from llmpq.plan.problem import Problem
from llmpq.plan.search import compared_candidates

Document = dict[str, Any]
# Two plans whose times or damages are this close (relative) are the same on that axis.
SAME = 1e-9


def pareto(
    problem: Mapping[str, Any],
    *,
    points: int = 8,
    memory_factors: Sequence[float] = (1.0,),
    solver: str = "glpk",
    time_limit: float = 60.0,
    gap: float = 1e-3,
    seed: int = 0,
    path: str = "problem",
) -> Document:
    """The body of pareto.json: one front per memory factor, at most ``points`` plans each, from gentle to fast; dominated ones removed.

    The problem's own objective plays no part. ``time_limit`` in seconds, ``gap`` and ``seed`` are those of each search. A factor with
    which nothing fits has no points and says why; where that is so for all of them, InfeasibleError is raised.
    """
    if points < 2 or not memory_factors or any(not 0 < factor < math.inf for factor in memory_factors):
        raise ConfigError("a front needs at least 2 points and memory factors above 0")
    checked = Problem.from_document(problem, path)
    limits = {"time_limit": time_limit, "gap": gap, "seed": seed}
    fronts = [_front(scaled(checked.document, factor), factor, points, solver, limits) for factor in memory_factors]
    if all(front["infeasible"] for front in fronts):
        raise InfeasibleError(fronts[0]["infeasible"])
    return {
        "problem": checked.name,
        "problem_sha256": artifacts.body_digest(checked.document),
        "source": checked.document["source"],
        "points_asked": points,
        "fronts": fronts,
    }


def scaled(document: Mapping[str, Any], factor: float) -> Document:
    """The problem with the memory of every device times ``factor``, rounded down."""
    devices = [{**device, "memory_bytes": math.floor(device["memory_bytes"] * factor)} for device in document["devices"]]
    return {**{key: value for key, value in document.items() if key != "provenance"}, "devices": devices}


def with_budget(document: Mapping[str, Any], budget: float | None) -> Document:
    """The problem with ``budget`` as its objective; None: time alone."""
    return {**document, "objective": {"theta_ms": 0.0} if budget is None else {"quality_budget": budget}}


def _front(document: Document, factor: float, points: int, solver: str, limits: Mapping[str, Any]) -> Document:
    free = Problem.from_document(with_budget(document, None))
    candidates = compared_candidates(free)
    tables = LeastOmega(free, candidates)
    least = min((tables.least(candidate) for candidate in candidates), default=math.inf)
    try:
        fastest = plan_from(free, [], solver, **limits)
    except InfeasibleError as error:
        return {"memory_factor": factor, "infeasible": str(error), "points": []}
    known = [assignment_of(free, fastest)]
    found = []
    for budget in _budgets(least, fastest["omega_sum"], points):
        plan = _point(document, budget, known, solver, limits)
        known.append(assignment_of(free, plan))
        found.append({"quality_budget": budget, "plan": plan})
    return {"memory_factor": factor, "infeasible": None, "points": _better_of_each(found)}


def _budgets(least: float, most: float, points: int) -> list[float]:
    """From the least damage to that of the fastest plan, evenly in its square root: more points where quality is high."""
    if most <= least * (1 + SAME) or points == 1:
        return [max(least, most)]
    roots = np.linspace(math.sqrt(least), math.sqrt(most), points)
    return [least, *(float(root) ** 2 for root in roots[1:-1]), most]


def _point(document: Document, budget: float, known: Sequence[Assignment], solver: str, limits: Mapping[str, Any]) -> Document:
    problem = Problem.from_document(with_budget(document, budget))
    return plan_from(problem, known, solver, **limits)


def _better_of_each(found: Sequence[Document]) -> list[Document]:
    """Points that no other one beats in time and damage, from gentle to fast, as they are written; of equal ones the first."""
    kept: list[Document] = []
    for point in sorted(found, key=lambda point: (point["plan"]["omega_sum"], point["plan"]["objective_ms"])):
        # All kept points do no more damage than this one, so it must be faster than the last of them, which is the fastest.
        if not kept or point["plan"]["objective_ms"] < kept[-1]["plan"]["objective_ms"] * (1 - SAME):
            kept.append(point)
    return [_entry(point) for point in kept]


def _entry(point: Document) -> Document:
    plan = point["plan"]
    return {
        "quality_budget": point["quality_budget"],
        "omega_sum": plan["omega_sum"],
        "batch_ms": plan["objective_ms"],
        "tokens_per_s": plan["predicted"]["tokens_per_s"],
        "gap": plan["certificate"]["gap"],
        "plan": plan,
    }
