"""``llmpq check``: judge a plan.json against its problem.json, from the mathematics alone."""

import argparse
import math
from pathlib import Path

from llmpq.commands.plan import add_objective_arguments, objective_argument

HELP = "check a plan against its problem: contiguity, memory, times, quality, certificate"

_TOLERANCE = 1e-9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", type=Path, metavar="PROBLEM.json")
    parser.add_argument("plan", type=Path, metavar="PLAN.json")
    add_objective_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from llmpq import artifacts
    from llmpq.plan.check import check
    from llmpq.planning import read_problem
    from llmpq.simulate.predict import with_simulation

    problem = read_problem(args.problem, objective_argument(args))
    plan = artifacts.read(args.plan, "plan")
    faults = check(problem, plan)
    if not faults and plan["predicted"]["simulated_total_s"] is not None:
        again = with_simulation(problem, plan)["predicted"]
        faults = [
            f"predicted.{key} is {stated}, the event simulation gives {again[key]}"
            for key, stated in plan["predicted"].items()
            if not math.isclose(again[key] or 0.0, stated or 0.0, rel_tol=_TOLERANCE)
        ]
    for fault in faults:
        print(f"{args.plan}: {fault}")
    if not faults:
        print(f"{args.plan}: a valid plan for {args.problem}")
    return 1 if faults else 0
