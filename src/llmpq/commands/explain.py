"""``llmpq explain``: what binds, what a little more of anything would buy, and why the baselines lose."""

import argparse
from pathlib import Path

from llmpq.commands.plan import add_objective_arguments, objective_argument

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


def run(args: argparse.Namespace) -> int:
    from llmpq.planning import write_explanation

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
