"""``llmpq plan``: decide device order, cut, options and micro-batches for a problem.json."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmpq.plan.strategies import STRATEGIES

HELP = "plan a problem: device order, cut, weight option of every layer, micro-batches"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", type=Path, metavar="PROBLEM.json")
    parser.add_argument("--out", type=Path, required=True, metavar="PLAN.json")
    parser.add_argument("--strategy", default="llmpq", metavar="NAME", help=f"{', '.join(STRATEGIES)} (default llmpq); see below")
    parser.add_argument("--solver", default="glpk", help="glpk (default) or highs")
    parser.add_argument("--time-limit", type=float, default=120.0, metavar="SECONDS", help="best plan so far after that (default 120)")
    parser.add_argument("--gap", type=float, default=1e-4, help="relative gap to prove (default 1e-4)")
    parser.add_argument("--seed", type=int, default=0)
    add_objective_arguments(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "strategies:\n" + "\n".join(f"  {name:<20}{strategy.summary}" for name, strategy in STRATEGIES.items())


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    """The objective in place of the problem's own; `llmpq check` must be given the same."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--theta", type=float, metavar="MS", help="weight of the summed sensitivity, in place of the problem's objective")
    group.add_argument(
        "--quality-budget", type=float, metavar="X", help="limit of the summed sensitivity, in place of the problem's objective"
    )


def objective_argument(args: argparse.Namespace) -> dict[str, float] | None:
    if args.theta is not None:
        return {"theta_ms": args.theta}
    return None if args.quality_budget is None else {"quality_budget": args.quality_budget}


def run(args: argparse.Namespace) -> int:
    from llmpq.planning import write_plan

    document = write_plan(
        args.problem,
        args.out,
        args.strategy,
        solver=args.solver,
        time_limit=args.time_limit,
        gap=args.gap,
        seed=args.seed,
        objective=objective_argument(args),
    )
    print(summary(document))
    return 0


def summary(plan: Mapping[str, Any]) -> str:
    """A plan in a few lines for the terminal."""
    from llmpq import planless

    if (why := planless.reason(plan)) is not None:
        return f"{plan['strategy']} ({plan['status']}): {why}"
    lines = []
    for stage in plan["stages"]:
        runs = ", ".join(f"{stage['options'].count(option)} × {option}" for option in dict.fromkeys(stage["options"]))
        used, budget = (_readable(stage["bytes"][kind]) for kind in ("total", "budget"))
        last = stage["first_layer"] + len(stage["options"]) - 1
        ends = "".join(f", {end} at {stage[f'{end}_option']}" for end in ("embedding", "head") if stage[f"{end}_option"] is not None)
        lines.append(f"  {stage['device']}: layers {stage['first_layer']}-{last} ({runs}){ends}, {used} of {budget}")
    predicted, certificate, batch = plan["predicted"], plan["certificate"], plan["micro_batch"]
    speed = "" if predicted["tokens_per_s"] is None else f", {predicted['tokens_per_s']:,.1f} tokens/s"
    proof = "no bound" if certificate["gap"] is None else f"gap {certificate['gap']:.3%}"
    found = certificate["candidates"]
    head = (
        f"{plan['strategy']}: {predicted['total_s']:.3f} s{speed}, sum of omega {plan['omega_sum']:.4g} ({certificate['status']}, {proof})"
    )
    search = f"{found['enumerated']} candidates, {found['solved']} programs solved ({certificate['solver']})"
    tail = f"  micro-batches: prefill {batch['prefill']}, decode {batch['decode']}; planned in {certificate['seconds']:.1f} s, {search}"
    ties = [name for name, each in plan.get("baselines", {}).items() if each is not None and each.get("tie")]
    level = [f"  as good as the plan of {', '.join(ties)}: the search found nothing better"] if ties else []
    return "\n".join([*_offload(plan), head, *lines, tail, *level])


def _offload(plan: Mapping[str, Any]) -> list[str]:
    """What offloading would reach, first where it is better than the plan."""
    from llmpq.plan.offload import sentence

    if "offload" not in plan or not plan["offload"]["wins"]:
        return []
    return [f"offloading would be better than every plan without it: {sentence(plan['offload'])}"]


def _readable(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size:,} bytes"
