"""The planner's stages: problem.json in; plan.json (checked and simulated before it is written), explain.json or pareto.json out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq import artifacts, planless
from llmpq.errors import InfeasibleError, LlmpqError
from llmpq.plan.check import check
from llmpq.plan.explain import explain
from llmpq.plan.pareto import pareto
from llmpq.plan.planner import plan
from llmpq.simulate.predict import with_simulation


def read_problem(path: str | Path, objective: Mapping[str, float] | None = None) -> dict[str, Any]:
    """problem.json, with another objective if one is given."""
    document = artifacts.read(path, "problem")
    return document if objective is None else {**document, "objective": dict(objective)}


def write_plan(
    problem_path: str | Path,
    plan_path: str | Path,
    strategy: str,
    *,
    solver: str = "glpk",
    time_limit: float = 120.0,
    gap: float = 1e-4,
    seed: int = 0,
    objective: Mapping[str, float] | None = None,
    experiment: str | None = None,
    keep_infeasible: bool = False,
) -> dict[str, Any]:
    """The stage: read problem.json, plan, simulate and check the plan, write plan.json; returns the document written.

    With ``keep_infeasible`` a strategy other than llmpq that has no plan leaves a plan.json that says why (see ``planless``), so that an
    experiment goes on without it; else, and for llmpq, InfeasibleError is raised.
    """
    problem = read_problem(problem_path, objective)
    try:
        body = plan(problem, strategy, solver=solver, time_limit=time_limit, gap=gap, seed=seed, path=str(problem_path))
    except InfeasibleError as error:
        if not keep_infeasible or strategy == "llmpq":
            raise
        body = planless.plan_body(problem, strategy, str(error))
    if planless.reason(body) is None:
        body = with_simulation(problem, body)
    if experiment is not None:
        body["experiment"] = experiment
    faults = check(problem, body)
    if faults:
        raise LlmpqError(f"the {strategy} plan for {problem_path} failed its own check, a defect of the planner: {faults[0]}")
    settings = {"strategy": strategy, "solver": solver, "time_limit": time_limit, "gap": gap, "seed": seed, "objective": objective}
    return artifacts.write(plan_path, "plan", body, source=problem["source"], inputs=[problem_path], config=settings)


def write_explanation(
    problem_path: str | Path,
    plan_path: str | Path | None,
    out: str | Path | None,
    *,
    solver: str,
    time_limit: float,
    gap: float,
    seed: int,
    objective: Mapping[str, float] | None = None,
    experiment: str | None = None,
) -> dict[str, Any]:
    """The stage: read problem.json and plan.json, explain, write explain.json (where ``out`` is given); returns its body."""
    problem = read_problem(problem_path, objective)
    plan = artifacts.read(plan_path, "plan") if plan_path is not None else None
    limits: dict[str, Any] = {"solver": solver, "time_limit": time_limit, "gap": gap, "seed": seed}
    body = explain(problem, plan, **limits, path=str(problem_path))
    if experiment is not None:
        body["experiment"] = experiment
    if out is not None:
        inputs = [problem_path] if plan_path is None else [problem_path, plan_path]
        artifacts.write(out, "explain", body, source=problem["source"], inputs=inputs, config={**limits, "objective": objective})
    return body


def write_front(
    problem_path: str | Path,
    out: str | Path,
    *,
    points: int,
    memory_factors: Sequence[float],
    solver: str,
    time_limit: float,
    gap: float,
    seed: int,
    experiment: str | None = None,
) -> dict[str, Any]:
    """The stage: read problem.json, plan every point, write pareto.json; returns the document written."""
    problem = artifacts.read(problem_path, "problem")
    settings = {
        "points": points,
        "memory_factors": list(memory_factors),
        "solver": solver,
        "time_limit": time_limit,
        "gap": gap,
        "seed": seed,
    }
    body = pareto(
        problem,
        points=points,
        memory_factors=memory_factors,
        solver=solver,
        time_limit=time_limit,
        gap=gap,
        seed=seed,
        path=str(problem_path),
    )
    if experiment is not None:
        body["experiment"] = experiment
    return artifacts.write(out, "pareto", body, source=problem["source"], inputs=[problem_path], config=settings)
