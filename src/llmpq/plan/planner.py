"""The planner's front door: a problem and a strategy in, a plan (the body of plan.json) out."""

import math
import time
from collections.abc import Mapping
from typing import Any

from llmpq.errors import ConfigError, InfeasibleError, LlmpqError
from llmpq.plan.baselines import BASELINES, least_damage
from llmpq.plan.candidate import Assignment, build, objective_ms, within_budget
from llmpq.plan.infeasible import explain_baseline, infeasible_error
from llmpq.plan.least_omega import LeastOmega
from llmpq.plan.polish import polish
from llmpq.plan.problem import Problem
from llmpq.plan.result import plan_body
from llmpq.plan.search import SearchResult, all_candidates, search, some_candidates
from llmpq.plan.solve import solver_version

STRATEGIES = ("llmpq", *BASELINES)
# Both solvers work to relative tolerances of 1e-7: a gap this far above the one requested is rounding.
PROOF_TOLERANCE = 1e-6
# Baselines are given their best order among so many candidates; a cluster of 16 devices of 4 types has 63 million orders.
MOST_COMPARED = 3_000


def plan(
    problem: Mapping[str, Any],
    strategy: str = "llmpq",
    *,
    solver: str = "glpk",
    time_limit: float = 120.0,
    gap: float = 1e-4,
    seed: int = 0,
    path: str = "problem",
) -> dict[str, Any]:
    """Plan ``problem`` (a problem.json document or body) and return the body of plan.json.

    ``strategy`` is one of STRATEGIES; ``solver`` (glpk, highs), ``time_limit`` in seconds, the relative ``gap`` to prove and ``seed``
    concern llmpq alone. When the time is over the best plan known is returned with the gap that is proven. llmpq starts from the
    baselines' plans, so it is never worse than one of them that keeps the quality budget. The same input gives the same plan
    (unless the time limit cuts in). ``path`` names the problem in messages. ``predicted.simulated_total_s`` is left null:
    ``simulate.barrier`` fills it.

    Raises ConfigError for unknown names, ArtifactError for a bad problem, InfeasibleError where no plan exists (which device lacks how
    many bytes, or how much damage the budget forbids).
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"unknown strategy '{strategy}'; strategies are {', '.join(STRATEGIES)}")
    if time_limit <= 0 or not 0 <= gap < 1:
        raise ConfigError(f"time limit must be > 0 and 0 <= gap < 1, not {time_limit} and {gap}")
    checked = Problem.from_document(problem, path)
    started = time.monotonic()
    if strategy == "llmpq":
        return _plan_exactly(checked, solver, time_limit, gap, seed, started)
    candidates = all_candidates(checked)
    assignment = BASELINES[strategy](checked, candidates)
    if assignment is None:
        raise InfeasibleError(explain_baseline(checked, strategy))
    body = plan_body(checked, assignment, strategy)
    seconds = time.monotonic() - started
    return {**body, "certificate": _heuristic_certificate(body["objective_ms"], len(candidates), strategy, seconds, seed)}


def _heuristic_certificate(objective: float, enumerated: int, strategy: str, seconds: float, seed: int) -> dict[str, Any]:
    return {
        "objective": objective,
        "bound": None,
        "gap": None,
        "solver": {"adabits": "dynamic programming"}.get(strategy, "enumeration"),
        "solver_version": "llmpq",
        "status": "heuristic",
        "seconds": seconds,
        "candidates": {"enumerated": enumerated, "pruned": 0, "solved": 0},
        "seed": seed,
    }


def _plan_exactly(problem: Problem, solver: str, time_limit: float, gap: float, seed: int, started: float) -> dict[str, Any]:
    version = solver_version(solver) if solver in ("glpk", "highs") else None
    if version is None:
        raise ConfigError(f"unknown solver '{solver}'; solvers are glpk, highs")
    candidates = some_candidates(problem, MOST_COMPARED)
    least = LeastOmega(problem, candidates)
    baselines = {name: run(problem, candidates) for name, run in BASELINES.items() if name != "adabits"}
    baselines["adabits"] = least_damage(problem, candidates, least)
    start = [assignment for assignment in baselines.values() if assignment is not None]
    remaining = max(time_limit - (time.monotonic() - started), 0.0)
    found = search(problem, solver=solver, time_limit_s=remaining, gap=gap, seed=seed, start=start, least=least)
    if found.best is None:
        if math.isfinite(found.bound_ms):
            raise LlmpqError(f"no plan found within {time_limit} s, and none ruled out: give the planner more time")
        raise infeasible_error(problem)
    best = found.best if problem.quality_budget is None else polish(problem, found.best)
    body = plan_body(problem, best, "llmpq")
    body["certificate"] = _certificate(found, body["objective_ms"], solver, version, gap, seed, time.monotonic() - started)
    body["baselines"] = {name: None if item is None else _summary(problem, item) for name, item in baselines.items()}
    return body


def _certificate(found: SearchResult, objective: float, solver: str, version: str, gap: float, seed: int, seconds: float) -> dict[str, Any]:
    bound = max(min(found.bound_ms, objective), 0.0)
    proven = (objective - bound) / objective if objective > 0 else 0.0
    return {
        "objective": objective,
        "bound": bound,
        "gap": proven,
        "solver": solver,
        "solver_version": version,
        "status": "optimal" if proven <= gap + PROOF_TOLERANCE else "feasible",
        "gap_requested": gap,
        "seconds": seconds,
        "candidates": {"enumerated": found.enumerated, "pruned": found.pruned, "solved": found.solved},
        "seed": seed,
    }


def _summary(problem: Problem, assignment: Assignment) -> dict[str, Any]:
    omega = assignment.omega_sum(problem)
    return {
        "objective_ms": objective_ms(problem, build(problem, assignment.order, assignment.batches), assignment),
        "omega_sum": omega,
        "quality_budget_met": None if problem.quality_budget is None else within_budget(problem, omega),
    }
