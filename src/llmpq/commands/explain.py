"""``llmpq explain``: what binds, what a little more of anything would buy, and why the baselines lose."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmpq.commands.plan import add_objective_arguments, objective_argument, read_problem

HELP = "explain a plan: what binds on each stage, what more memory, speed or bandwidth would buy, why baselines lose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", type=Path, metavar="PROBLEM.json")
    parser.add_argument("plan", type=Path, nargs="?", metavar="PLAN.json", help="a plan of any strategy; without one the best plan")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write explain.json there")
    parser.add_argument("--solver", default="glpk", help="glpk (default) or highs")
    parser.add_argument("--time-limit", type=float, default=30.0, metavar="SECONDS", help="of each search (default 30)")
    parser.add_argument("--gap", type=float, default=1e-4, help="relative gap to prove in each search (default 1e-4)")
    parser.add_argument("--seed", type=int, default=0)
    add_objective_arguments(parser)


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
    from llmpq import artifacts
    from llmpq.plan.explain import explain

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


def run(args: argparse.Namespace) -> int:
    body = write_explanation(
        args.problem,
        args.plan,
        args.json,
        solver=args.solver,
        time_limit=args.time_limit,
        gap=args.gap,
        seed=args.seed,
        objective=objective_argument(args),
    )
    print("\n".join(body["sentences"]))
    return 0 if body["feasible"] else 1
