"""The planner's front door: a problem and a strategy in, a plan (the body of plan.json) out."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from llmpq import planless
from llmpq.errors import ConfigError, InfeasibleError, LlmpqError
from llmpq.plan.candidate import Assignment, Candidate, build, objective_ms, within_budget
from llmpq.plan.infeasible import infeasible_error
from llmpq.plan.offload import offload, offload_block, sentence
from llmpq.plan.orders import device_orders
from llmpq.plan.polish import polish
from llmpq.plan.problem import Problem
from llmpq.plan.result import plan_body
from llmpq.plan.search import MOST, MOST_COMPARED, SearchResult, compared_candidates, is_complete, search, some_candidates
from llmpq.plan.solve import SOLVERS, solver_version
from llmpq.plan.strategies import BASELINES, STRATEGIES
from llmpq.plan.why_not import explain_strategy

# A baseline this close (relative) to the plan reaches the same.
TIE = 1e-9
# Both solvers work to relative tolerances of 1e-7: a gap this far above the one requested is rounding.
PROOF_TOLERANCE = 1e-6

# Baselines may take this share of the time limit: the search for a plan and its proof needs the rest.
BASELINES_SHARE = 0.4

# How the baselines find their plans, for the certificate.
SOLVED_BY = {"adabits": "dynamic programming", "llmpq-transfer": "local search", "het": "local search"}


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
    baselines' plans, so it is never worse than one of them that keeps the quality budget. The same input gives the same plan (unless the
    time limit cuts in). ``path`` names the problem in messages. ``predicted.simulated_total_s`` is left null: ``simulate.predict`` fills
    it.

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
    candidates = [] if strategy == "llmpq-transfer" else compared_candidates(checked)  # transfers choose their own
    if strategy == "offload":
        return _price_offload(checked, candidates)
    assignment = STRATEGIES[strategy].load()(checked, candidates)
    if assignment is None:
        raise InfeasibleError(explain_strategy(checked, strategy))
    body = plan_body(checked, assignment, strategy)
    seconds = time.monotonic() - started
    return {**body, "certificate": _heuristic_certificate(body["objective_ms"], len(candidates), strategy, seconds, seed)}


def _heuristic_certificate(objective: float, enumerated: int, strategy: str, seconds: float, seed: int) -> dict[str, Any]:
    return {
        "objective": objective,
        "bound": None,
        "gap": None,
        "solver": SOLVED_BY.get(strategy.removesuffix("-published"), "enumeration"),
        "solver_version": "llmpq",
        "status": "heuristic",
        "seconds": seconds,
        "candidates": {"enumerated": enumerated, "pruned": 0, "solved": 0},
        "seed": seed,
    }


def _plan_exactly(problem: Problem, solver: str, time_limit: float, gap: float, seed: int, started: float) -> dict[str, Any]:
    _known_solver(solver)
    candidates, baselines = _compared(problem, time_limit * BASELINES_SHARE)
    start = [assignment for assignment in baselines.values() if assignment is not None]
    body = plan_from(problem, start, solver, time_limit=time_limit, gap=gap, seed=seed, started=started)
    body["certificate"]["candidates"]["compared"] = len(candidates)
    body["baselines"] = {name: None if item is None else _summary(problem, item, body) for name, item in baselines.items()}
    priced = offload(problem, candidates)
    if priced is not None:
        block = offload_block(problem, priced)
        wins = block["quality_budget_met"] is not False and block["objective_ms"] < body["objective_ms"] * (1 - TIE)
        body["offload"] = {**block, "wins": wins}
    return body


def _compared(problem: Problem, seconds: float) -> tuple[list[Candidate], dict[str, Assignment | None]]:
    """The candidates that baselines are chosen from, and their plans: a first few, or all if they take no more than ``seconds``.

    Whether they do is told from the time that the first ones take; all are looked at, too, where the first ones have no plan.
    """
    started = time.monotonic()
    first = some_candidates(problem, MOST_COMPARED)
    plans = baseline_plans(problem, first)
    took = time.monotonic() - started
    if is_complete(problem, MOST_COMPARED) or not is_complete(problem, MOST):
        return first, plans
    whole = sum(1 for _ in device_orders(problem)) * len(problem.micro_batches)
    if took * (1 + whole / len(first)) > seconds and any(plan is not None for plan in plans.values()):
        return first, plans
    every = compared_candidates(problem)
    return every, baseline_plans(problem, every, {"llmpq-transfer": plans["llmpq-transfer"]})


def plan_from(
    problem: Problem,
    start: Iterable[Assignment],
    solver: str,
    *,
    time_limit: float,
    gap: float,
    seed: int = 0,
    started: float | None = None,
) -> dict[str, Any]:
    """The body of plan.json of the exact search from known plans, without baselines; at least as good as every plan of ``start`` that fits.

    ``time_limit`` in seconds counts from ``started`` (a monotonic time; default now). Raises as ``plan`` does.
    """
    started = time.monotonic() if started is None else started
    version = _known_solver(solver)
    remaining = max(time_limit - (time.monotonic() - started), 0.0)
    found = search(problem, solver=solver, time_limit_s=remaining, gap=gap, seed=seed, start=start)
    if found.best is None:
        if math.isfinite(found.bound_ms):
            raise LlmpqError(f"no plan found within {time_limit} s, and none ruled out: give the planner more time")
        raise infeasible_error(problem)
    best = found.best if problem.quality_budget is None else polish(problem, found.best)
    body = plan_body(problem, best, "llmpq")
    body["certificate"] = _certificate(found, body["objective_ms"], solver, version, gap, seed, time.monotonic() - started)
    return body


def _known_solver(solver: str) -> str:
    """Its name and version."""
    if solver not in SOLVERS:
        raise ConfigError(f"unknown solver '{solver}'; solvers are {', '.join(SOLVERS)}")
    return solver_version(solver)


def _price_offload(problem: Problem, candidates: list[Candidate]) -> dict[str, Any]:
    """plan.json of strategy offload: no plan to run, but a price."""
    priced = offload(problem, candidates)
    if priced is None:
        raise InfeasibleError(explain_strategy(problem, "offload"))
    block = offload_block(problem, priced)
    found = planless.plan_body(problem.document, "offload", sentence(block))
    return {**found, "status": "priced", "offload": {**block, "wins": False}}


def baseline_plans(
    problem: Problem, candidates: list[Candidate], known: Mapping[str, Assignment | None] | None = None
) -> dict[str, Assignment | None]:
    """The plan of every baseline, or None where it has none; they start the search and guard its result. ``known`` ones are not sought."""
    known = known or {}
    return {name: known[name] if name in known else STRATEGIES[name].load()(problem, candidates) for name in BASELINES}


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
        "candidates": {"enumerated": found.enumerated, "pruned": found.pruned, "solved": found.solved, "failed": found.failed},
        "seed": seed,
    }


def _summary(problem: Problem, assignment: Assignment, body: Mapping[str, Any]) -> dict[str, Any]:
    """What a baseline reaches, and whether it ties with the plan ``body``."""
    omega = assignment.omega_sum(problem)
    value = objective_ms(problem, build(problem, assignment.order, assignment.batches), assignment)
    within = within_budget(problem, omega)
    return {
        "objective_ms": value,
        "omega_sum": omega,
        "quality_budget_met": None if problem.quality_budget is None else within,
        "tie": within and value <= body["objective_ms"] * (1 + TIE),
    }
