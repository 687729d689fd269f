"""``llmpq pareto``: the front of speed and quality of a problem, every point a plan with its certificate."""

import argparse
from pathlib import Path

HELP = "the front of speed and quality: the fastest plan for a series of quality budgets, each with its certificate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", type=Path, metavar="PROBLEM.json")
    parser.add_argument("--out", type=Path, required=True, metavar="PARETO.json")
    parser.add_argument("--points", type=int, default=8, metavar="N", help="budgets to try (default 8)")
    parser.add_argument(
        "--memory", type=float, nargs="+", default=[1.0], metavar="FACTOR", help="a front per factor on all devices' memory"
    )
    parser.add_argument("--solver", default="glpk", help="glpk (default) or highs")
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="SECONDS", help="of each search (default 60)")
    parser.add_argument("--gap", type=float, default=1e-3, help="relative gap to prove at each point (default 1e-3)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    from llmpq.planning import write_front

    document = write_front(
        args.problem,
        args.out,
        points=args.points,
        memory_factors=args.memory,
        solver=args.solver,
        time_limit=args.time_limit,
        gap=args.gap,
        seed=args.seed,
    )
    for front in document["fronts"]:
        print(f"memory × {front['memory_factor']:g}: {front['infeasible'] or ''}".rstrip(": "))
        for point in front["points"]:
            speed = "" if point["tokens_per_s"] is None else f"{point['tokens_per_s']:>12,.1f} tokens/s"
            print(f"  sum of omega {point['omega_sum']:<10.4g}{point['batch_ms']:>14,.3f} ms a batch{speed}   gap {point['gap']:.3%}")
    return 0
